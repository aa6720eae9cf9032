#include "kernels/split_master.h"

#include "kernels/check.h"

namespace dstrain {

namespace {
void check_all(const Tensor& master, const Tensor& hi, const Tensor& low, const char* op) {
  check_rank(master, 1, op);
  check_vector(master, DType::f32, master.dim(0), op);
  check_vector(hi, DType::bf16, master.dim(0), op);
  check_vector(low, DType::u16, master.dim(0), op);
}
}  // namespace

void SplitMaster::validate() const { check_all(master, hi, low, "split_master"); }
Cost SplitMaster::cost() const { return {0, 0, bytes_of({&hi, &low, &master})}; }

void JoinMaster::validate() const { check_all(master, hi, low, "join_master"); }
Cost JoinMaster::cost() const { return {0, 0, bytes_of({&hi, &low, &master})}; }

}  // namespace dstrain
