#include "lib/core/hdf5_driver.h"

#include <hdf5.h>

#include <algorithm>
#include <cstring>
#include <utility>

namespace dstrain {

void Hdf5State::flush() {
  std::vector<Write> writes;
  std::swap(writes, pending);
  if (discard) return;
  try {
    for (const Write& w : writes) {
      if (w.truncates)
        file->truncate(w.offset);
      else
        file->pwrite(w.bytes, w.offset);
    }
  } catch (...) {
    discard = true;
    throw;
  }
}

namespace {

struct DriverInfo {
  Hdf5State* state;
};

struct DriverFile {
  H5FD_t base;  // first, as HDF5 wants
  Hdf5State* state;
  haddr_t eoa;
  haddr_t eof;
};

DriverFile& self(H5FD_t* f) { return *reinterpret_cast<DriverFile*>(f); }
const DriverFile& self(const H5FD_t* f) { return *reinterpret_cast<const DriverFile*>(f); }

// Runs `body`, keeping its exception for the caller on the other side of HDF5.
template <class F>
herr_t guarded(Hdf5State& state, F&& body) {
  try {
    body();
    return 0;
  } catch (...) {
    if (!state.error) state.error = std::current_exception();
    return -1;
  }
}

// The same for what is written later. HDF5 is never told of a failure: its cleaning up after a failed write crashes.
template <class F>
herr_t deferred(Hdf5State& state, F&& body) {
  if (!state.discard && guarded(state, body) < 0) state.discard = true;
  return 0;
}

H5FD_t* driver_open(const char*, unsigned, hid_t fapl, haddr_t) {
  const auto* info = static_cast<const DriverInfo*>(H5Pget_driver_info(fapl));
  if (!info || !info->state->file) return nullptr;
  H5FD_t* opened = nullptr;
  guarded(*info->state, [&] {
    auto f = std::make_unique<DriverFile>();
    std::memset(f.get(), 0, sizeof *f);
    f->state = info->state;
    f->eof = info->state->file->size();
    opened = &f.release()->base;
  });
  return opened;
}

herr_t driver_close(H5FD_t* f) {
  delete &self(f);
  return 0;
}

int driver_cmp(const H5FD_t* a, const H5FD_t* b) {
  const auto x = reinterpret_cast<std::uintptr_t>(self(a).state), y = reinterpret_cast<std::uintptr_t>(self(b).state);
  return x < y ? -1 : x > y ? 1 : 0;
}

herr_t driver_query(const H5FD_t*, unsigned long* flags) {
  if (flags)
    *flags = H5FD_FEAT_AGGREGATE_METADATA | H5FD_FEAT_ACCUMULATE_METADATA | H5FD_FEAT_DATA_SIEVE |
             H5FD_FEAT_AGGREGATE_SMALLDATA;
  return 0;
}

haddr_t driver_get_eoa(const H5FD_t* f, H5FD_mem_t) { return self(f).eoa; }
herr_t driver_set_eoa(H5FD_t* f, H5FD_mem_t, haddr_t address) {
  self(f).eoa = address;
  return 0;
}
haddr_t driver_get_eof(const H5FD_t* f, H5FD_mem_t) { return self(f).eof; }

// As HDF5's own drivers do, bytes past the end of the file read as zeros.
herr_t driver_read(H5FD_t* f, H5FD_mem_t, hid_t, haddr_t address, std::size_t size, void* buffer) {
  DriverFile& d = self(f);
  auto* bytes = static_cast<std::byte*>(buffer);
  return guarded(*d.state, [&] {
    d.state->flush();
    const haddr_t there = address < d.eof ? std::min<haddr_t>(size, d.eof - address) : 0;
    if (d.state->discard)
      std::memset(bytes, 0, size);
    else if (there)
      d.state->file->pread({bytes, static_cast<std::size_t>(there)}, address);
    std::memset(bytes + there, 0, size - there);
  });
}

herr_t driver_write(H5FD_t* f, H5FD_mem_t, hid_t, haddr_t address, std::size_t size, const void* buffer) {
  DriverFile& d = self(f);
  return deferred(*d.state, [&] {
    auto& pending = d.state->pending;
    if (pending.empty() || pending.back().truncates || pending.back().offset + pending.back().bytes.size() != address)
      pending.push_back({.offset = address, .bytes = {}, .truncates = false});
    const auto* bytes = static_cast<const std::byte*>(buffer);
    pending.back().bytes.insert(pending.back().bytes.end(), bytes, bytes + size);
    d.eof = std::max<haddr_t>(d.eof, address + size);
  });
}

herr_t driver_truncate(H5FD_t* f, hid_t, hbool_t) {
  DriverFile& d = self(f);
  if (d.eof == d.eoa) return 0;
  return deferred(*d.state, [&] {
    d.state->pending.push_back({.offset = d.eoa, .bytes = {}, .truncates = true});
    d.eof = d.eoa;
  });
}

// Registered once for the process, as HDF5 counts drivers.
hid_t driver_id() {
  static const hid_t id = [] {
    static H5FD_class_t driver{};
    driver.name = "dstrain";
    driver.maxaddr = (haddr_t{1} << 62) - 1;
    driver.fc_degree = H5F_CLOSE_STRONG;
    driver.fapl_size = sizeof(DriverInfo);
    driver.open = driver_open;
    driver.close = driver_close;
    driver.cmp = driver_cmp;
    driver.query = driver_query;
    driver.get_eoa = driver_get_eoa;
    driver.set_eoa = driver_set_eoa;
    driver.get_eof = driver_get_eof;
    driver.read = driver_read;
    driver.write = driver_write;
    driver.truncate = driver_truncate;
    for (auto& m : driver.fl_map) m = H5FD_MEM_DEFAULT;
    return H5FDregister(&driver);
  }();
  return id;
}

}  // namespace

int use_file_driver(std::int64_t access_properties, Hdf5State& state) {
  const DriverInfo info{&state};
  return H5Pset_driver(access_properties, driver_id(), &info);
}

}  // namespace dstrain
