#pragma once
// HDF5's virtual file driver over File: lib/core/hdf5.cpp's alone.

#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "lib/core/errors.h"
#include "lib/core/files.h"

namespace dstrain {

// What the driver, the file object and its datasets share.
struct Hdf5State {
  std::string path;
  std::unique_ptr<File> file;
  ExitCode code = ExitCode::write;
  std::size_t cache_bytes = 0;
  std::exception_ptr error;  // thrown by `file` in a driver call; HDF5 is C and cannot carry it
  bool discard = false;      // the file is given up: HDF5 may still flush into nothing while it closes

  // What HDF5 has written and the file has not got. HDF5 runs under one lock of the whole process, so that a write to
  // slow or hung storage inside it would stop every other user of HDF5, the loader of a run among them.
  struct Write {
    std::uint64_t offset = 0;
    std::vector<std::byte> bytes;
    bool truncates = false;  // to `offset`
  };
  std::vector<Write> pending;
  // Hands it over. Throws what the file throws; what follows is then given up.
  void flush();
};

// Makes a file that is opened with these access properties (an hid_t) read and write through `state`, which is borrowed
// until HDF5 has closed it. Negative when HDF5 refuses, as its own calls.
int use_file_driver(std::int64_t access_properties, Hdf5State& state);

}  // namespace dstrain
