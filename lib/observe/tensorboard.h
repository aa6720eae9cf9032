#pragma once
// The scalars of metrics.jsonl as TensorBoard event files: TFRecord frames (length, masked CRC-32C of it, bytes, masked
// CRC-32C of them) around protocol buffers Event, Summary and SessionLog (tensorflow/core/util/event.proto and
// framework/summary.proto), which are few enough to be encoded here. A tag is the key of metrics.jsonl.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "lib/core/clock.h"
#include "lib/core/files.h"
#include "lib/observe/metrics.h"

namespace dstrain {

// CRC-32C (Castagnoli, reflected polynomial 0x82F63B78) of the bytes.
std::uint32_t crc32c(std::string_view bytes);

// Writes one event file. An event that cannot be written is dropped and counted.
class TensorBoardFile {
 public:
  // Makes `directory` and a new file in it, whose name sorts after those that are there: TensorBoard reads files in
  // that order. After "brain.Event:2" the file holds a SessionLog START at step `last_step` + 1, at which TensorBoard
  // forgets what earlier files say of that step and later ones: a resume leaves no step twice. Throws FileError. The
  // clock is borrowed.
  TensorBoardFile(const Files& files, const Clock& clock, const std::string& directory, std::int64_t last_step);

  void write(const StepRecord& record) { write(record.step, scalars(record)); }
  void write(const EvalRecord& record) { write(record.step, scalars(record)); }
  void write(const SaveRecord& record) { write(record.checkpoint_step, scalars(record)); }
  std::int64_t dropped() const { return dropped_; }
  const std::string& path() const { return path_; }

 private:
  void write(std::int64_t step, std::span<const Scalar> values);
  void append(const std::string& event);
  double wall() const;

  const Clock& clock_;
  double wall_begin_, begin_;
  std::string path_;
  std::unique_ptr<File> file_;
  std::uint64_t end_ = 0;
  std::int64_t dropped_ = 0;
};

}  // namespace dstrain
