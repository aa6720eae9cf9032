#pragma once
// What the CUDA kernels keep from launch to launch: handles of cuBLASLt and cuDNN, plans, measured choices. Belongs to
// one device and is used from one host thread; streams of both may share it.

#include <cublasLt.h>
#include <cudnn.h>

#include <map>
#include <memory>
#include <set>
#include <string>

#include "lib/core/gpu.h"
#include "lib/core/stream.h"

namespace dstrain::cuda {

// Throw Error{device} naming the call and the library's own words, unless the status is success.
void blas_check(cublasStatus_t status, const char* call);
void dnn_check(cudnnStatus_t status, const char* call);

// The plans of one library; each file that makes plans derives its own.
class PlanCache {
 public:
  virtual ~PlanCache() = default;
};

class CudaState final : public KernelState {
 public:
  CudaState();  // for the calling thread's device
  ~CudaState() override;
  CudaState(const CudaState&) = delete;
  CudaState& operator=(const CudaState&) = delete;

  std::string tuned() const override;
  std::string fast_paths() const override;

  const gpu::Info& device() const { return device_; }
  cublasLtHandle_t blas() const { return blas_; }
  // Made when first asked for; work goes to `stream`.
  cudnnHandle_t dnn(const Stream& stream);

  // The measured choice for an operation, empty when there is none: of this state, or of settings.tuned, whose lines
  // for other GPU models, drivers and versions of cuBLASLt are left out.
  std::string choice(const std::string& operation, const ComputeSettings& settings);
  void choose(const std::string& operation, const std::string& choice) { choices_[operation] = choice; }
  // Says in fast_paths() what is used.
  void note(const std::string& path) { paths_.insert(path); }

  std::unique_ptr<PlanCache> matmul_plans, attention_plans;  // made by their files

 private:
  gpu::Info device_;
  std::string hardware_;  // what a line of tuned() begins with
  cublasLtHandle_t blas_ = nullptr;
  cudnnHandle_t dnn_ = nullptr;
  std::map<std::string, std::string> choices_;
  std::string read_;  // the settings' text that choices_ has taken in
  std::set<std::string> paths_;
};

// The stream's state, made on first use.
CudaState& state_of(Stream& stream);

}  // namespace dstrain::cuda
