#include "lib/observe/log.h"

#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

namespace dstrain {

struct Log::Sinks {
  spdlog::logger logger{"dstrain"};
};

Log::Log(bool terminal, const std::string& file) : sinks_(std::make_unique<Sinks>()) {
  spdlog::logger& logger = sinks_->logger;
  logger.set_error_handler([](const std::string&) {});  // a full disk or a closed pipe is no reason to stop training
  if (terminal) {
    auto sink = std::make_shared<spdlog::sinks::stderr_color_sink_mt>();
    sink->set_pattern("%^%v%$");
    logger.sinks().push_back(sink);
  }
  if (!file.empty()) {
    try {
      auto sink = std::make_shared<spdlog::sinks::basic_file_sink_mt>(file);
      sink->set_pattern("%Y-%m-%dT%H:%M:%S%z %l %v");
      logger.sinks().push_back(sink);
    } catch (const spdlog::spdlog_ex& e) {
      logger.warn("log file {} is off: {}", file, e.what());
    }
  }
  logger.flush_on(spdlog::level::info);
}

Log::~Log() = default;

void Log::info(const std::string& message) { sinks_->logger.info(message); }
void Log::warn(const std::string& message) { sinks_->logger.warn("warning: {}", message); }
void Log::error(const std::string& message) { sinks_->logger.error("error: {}", message); }

}  // namespace dstrain
