#include "kernels/cuda/state.h"

#include <cuda_runtime_api.h>

#include <sstream>

namespace dstrain::cuda {

namespace {

constexpr const char* kSeparator = " | ";

}  // namespace

void blas_check(cublasStatus_t status, const char* call) {
  if (status != CUBLAS_STATUS_SUCCESS) [[unlikely]]
    fail(ExitCode::device, "{}: {} ({})", call, cublasLtGetStatusString(status), cublasLtGetStatusName(status));
}

void dnn_check(cudnnStatus_t status, const char* call) {
  if (status != CUDNN_STATUS_SUCCESS) [[unlikely]]
    fail(ExitCode::device, "{}: {}", call, cudnnGetErrorString(status));
}

CudaState::CudaState() : device_(gpu::info(gpu::current())) {
  blas_check(cublasLtCreate(&blas_), "cublasLtCreate");
  hardware_ = format("{}{}driver {}{}cuBLASLt {}{}", device_.name, kSeparator, device_.driver, kSeparator,
                     cublasLtGetVersion(), kSeparator);
}

CudaState::~CudaState() {
  matmul_plans.reset();
  attention_plans.reset();
  if (dnn_ != nullptr) cudnnDestroy(dnn_);
  if (blas_ != nullptr) cublasLtDestroy(blas_);
}

std::string CudaState::tuned() const {
  std::string text;
  for (const auto& [operation, choice] : choices_) text += hardware_ + operation + kSeparator + choice + "\n";
  return text;
}

std::string CudaState::fast_paths() const {
  std::string text;
  for (const std::string& path : paths_) text += path + "\n";
  return text;
}

cudnnHandle_t CudaState::dnn(const Stream& stream) {
  if (dnn_ == nullptr) dnn_check(cudnnCreate(&dnn_), "cudnnCreate");
  dnn_check(cudnnSetStream(dnn_, static_cast<cudaStream_t>(stream.queue().handle())), "cudnnSetStream");
  return dnn_;
}

std::string CudaState::choice(const std::string& operation, const ComputeSettings& settings) {
  if (settings.tuned != read_) {
    read_ = settings.tuned;
    std::stringstream lines(read_);
    for (std::string line; std::getline(lines, line);) {
      const std::size_t end = line.rfind(kSeparator);
      if (!line.starts_with(hardware_) || end == std::string::npos || end < hardware_.size()) continue;
      const std::string name = line.substr(hardware_.size(), end - hardware_.size());
      choices_.emplace(name, line.substr(end + std::string_view(kSeparator).size()));  // what was measured here stays
    }
  }
  const auto found = choices_.find(operation);
  return found == choices_.end() ? std::string() : found->second;
}

CudaState& state_of(Stream& stream) {
  if (stream.kernel_state() == nullptr) stream.set_kernel_state(std::make_shared<CudaState>());
  return static_cast<CudaState&>(*stream.kernel_state());
}

}  // namespace dstrain::cuda
