#pragma once
// Messages for people: the terminal and the run's log.txt. A sink that fails never stops the program.

#include <memory>
#include <string>

namespace dstrain {

class Log {
 public:
  // Writes to the terminal (standard error) when `terminal`, and appends to `file` unless empty.
  Log(bool terminal, const std::string& file);
  ~Log();
  Log(const Log&) = delete;
  Log& operator=(const Log&) = delete;

  void info(const std::string& message);
  void warn(const std::string& message);
  void error(const std::string& message);

 private:
  struct Sinks;
  std::unique_ptr<Sinks> sinks_;
};

}  // namespace dstrain
