// The calling convention of MindSpore's ahead-of-time custom operators (ops.Custom, func_type "aot").
// Source: MindSpore documentation, "Custom Operators (AOT)".
#pragma once

#include <cstdint>
#include <vector>

class AotExtra;

namespace qwen {

// The arguments of one call; the output is the last parameter.
class Op {
 public:
  Op(int count, void **params, int64_t **shapes) : count_(count), params_(params), shapes_(shapes) {}
  int inputs() const { return count_ - 1; }
  const float *f32(int i) const { return static_cast<const float *>(params_[i]); }
  const int32_t *i32(int i) const { return static_cast<const int32_t *>(params_[i]); }
  const int64_t *i64(int i) const { return static_cast<const int64_t *>(params_[i]); }
  float *out() const { return static_cast<float *>(params_[count_ - 1]); }
  const uint8_t *u8(int i) const { return static_cast<const uint8_t *>(params_[i]); }
  int64_t dim(int i, int axis) const { return shapes_[i][axis]; }

 private:
  int count_;
  void **params_;
  int64_t **shapes_;
};

}  // namespace qwen

#define QWEN_OP(name, ...)                                                                                       \
  extern "C" int name(int nparam, void **params, int *, int64_t **shapes, const char **, void *, void *) {       \
    const qwen::Op op(nparam, params, shapes);                                                                   \
    __VA_ARGS__                                                                                                  \
    return 0;                                                                                                    \
  }

// The output's shape, from `shapes` of the inputs; -1 is a size that is not known yet.
#define QWEN_SHAPE(name, ...)                                                                                    \
  extern "C" std::vector<int64_t> name##InferShape(int *, int64_t **shapes, AotExtra *) {                        \
    std::vector<int64_t> shape __VA_ARGS__;                                                                      \
    for (int64_t &size : shape) size = size < 0 ? -1 : size;                                                     \
    return shape;                                                                                                \
  }
