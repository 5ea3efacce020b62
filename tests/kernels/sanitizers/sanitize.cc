// The kernels and their pool of threads, called as MindSpore calls them: every kind of weight and of cache over shapes
// that tend to break kernels, in several threads of the caller as well, compared with plain loops. scripts/sanitize.sh
// builds this with a sanitizer and runs it as `sanitize THREADS`, the pool's threads.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>

#include "loops.h"

class AotExtra;
using Operator = int(int, void **, int *, int64_t **, const char **, void *, void *);
using InferShape = std::vector<int64_t>(int *, int64_t **, AotExtra *);
extern "C" {
void QwenSetThreads(int threads);
Operator QwenRmsNorm, QwenLinear, QwenLayers, QwenLayersWhole;
InferShape QwenRmsNormInferShape, QwenLinearInferShape, QwenLayersInferShape, QwenLayersWholeInferShape;
}

namespace {

using namespace loops;

// The inputs of one call of an operator, each in memory of just its size, so that a step beyond it is noticed.
class Call {
 public:
  template <typename T>
  Call &with(const std::vector<T> &data, std::vector<int64_t> shape) {
    params_.push_back(const_cast<T *>(data.data()));
    shapes_.push_back(std::move(shape));
    return *this;
  }

  Floats run(Operator *op, InferShape *infer) {
    std::vector<int64_t *> shapes;
    for (auto &shape : shapes_) shapes.push_back(shape.data());
    std::vector<int64_t> shape = infer(nullptr, shapes.data(), nullptr);
    int64_t size = 1;
    for (int64_t dim : shape) size *= dim;
    Floats out(size, kNone);
    params_.push_back(out.data());
    shapes.push_back(shape.data());
    op(static_cast<int>(params_.size()), params_.data(), nullptr, shapes.data(), nullptr, nullptr, nullptr);
    return out;
  }

 private:
  std::vector<void *> params_;
  std::vector<std::vector<int64_t>> shapes_;
};

void check(const Floats &actual, const Doubles &expected, double tolerance, const std::string &what) {
  for (size_t i = 0; i < expected.size(); ++i) {
    const float found = actual.size() == expected.size() ? actual[i] : kNone;
    if (std::abs(found - expected[i]) <= tolerance * (1 + std::abs(expected[i]))) continue;  // not so for NaN
    std::fprintf(stderr, "%s: expected %g at %zu, found %g\n", what.c_str(), expected[i], i, found);
    std::_Exit(1);
  }
}

void check_norms(Random &random) {
  for (const int64_t tokens : {1, 3, 50}) {
    for (const int64_t width : {1, 7, 64, 100}) {
      const Floats x = random.floats(tokens * width), weight = random.floats(width), settings{kEpsilon, 16};
      Call call;
      call.with(x, {tokens, width}).with(settings, {2}).with(weight, {width});
      check(call.run(QwenRmsNorm, QwenRmsNormInferShape), normalized(wide(x), weight), 2e-5, "norm");
    }
  }
}

void check_linear(Random &random, const Linear &linear, int64_t tokens) {
  const Floats x = random.floats(tokens * linear.inputs);
  const Floats settings{static_cast<float>(linear.kind), static_cast<float>(linear.groups ? linear.group_size : 0),
                        linear.zeros.empty() ? 0.0f : 1.0f, linear.order.empty() ? 0.0f : 1.0f,
                        linear.bias.empty() ? 0.0f : 1.0f};
  Call call;
  call.with(x, {tokens, linear.inputs}).with(settings, {5});
  if (linear.groups) {
    call.with(linear.levels, {linear.outputs, static_cast<int64_t>(linear.levels.size()) / linear.outputs});
    call.with(linear.scales, {linear.outputs, linear.groups});
    if (!linear.zeros.empty()) call.with(linear.zeros, {linear.outputs, linear.groups});
    if (!linear.order.empty()) call.with(linear.order, {linear.inputs});
  } else if (linear.halves.empty()) {
    call.with(linear.floats, {linear.outputs, linear.inputs});
  } else {
    call.with(linear.halves, {linear.outputs, linear.inputs});
  }
  if (!linear.bias.empty()) call.with(linear.bias, {linear.outputs});
  check(call.run(QwenLinear, QwenLinearInferShape), linear.times(wide(x)), 2e-5,
        "linear of kind " + std::to_string(static_cast<int>(linear.kind)) + ", " + std::to_string(tokens) + " x " +
            std::to_string(linear.inputs) + " -> " + std::to_string(linear.outputs));
}

// More tokens than a tile has and than are laid out at once; weights that fill neither vectors nor tiles.
void check_linears(Random &random) {
  const int64_t shapes[][2] = {{1, 1}, {7, 1}, {17, 8}, {34, 5}, {64, 24}, {100, 33}, {580, 9}};
  for (const auto &[inputs, outputs] : shapes) {
    for (const int64_t tokens : {1, 2, 3, 4, 5, 16, 17, 48, 50}) {
      for (const Kind kind : {Kind::kFloat32, Kind::kFloat16, Kind::kBfloat16}) {
        check_linear(random, Linear(random, kind, inputs, outputs, tokens % 2), tokens);
      }
      for (const int64_t group_size : {-1, 6, 16, 32, 64, 128}) {
        const bool symmetric = random.below(2), ordered = random.below(2), has_bias = random.below(2);
        for (const Kind kind : {Kind::kInt8, Kind::kInt4}) {
          if (kind == Kind::kInt4 && inputs % 2) continue;  // two a byte
          check_linear(random, Linear(random, kind, inputs, outputs, has_bias, group_size, symmetric, ordered), tokens);
        }
      }
    }
  }
  for (const int64_t tokens : {1008, 1009, 2030}) {
    check_linear(random, Linear(random, Kind::kFloat32, 7, 9, true), tokens);
    check_linear(random, Linear(random, Kind::kInt4, 34, 9, false, 16, false, true), tokens);
  }
}

// Some layers, and sequences that go through them step by step.
class Case {
 public:
  Case(Random &random, const Sizes &sizes, Kind kind, int64_t group_size, const Ints &most)
      : random_(random), sizes_(sizes), lengths_(most.size()),
        name_("layers of kind " + std::to_string(static_cast<int>(kind)) + ", " + std::to_string(sizes.heads) +
              " heads of " + std::to_string(sizes.size) + (sizes.is_8_bits ? ", 8-bit cache" : "")) {
    int64_t blocks = 0;
    for (int32_t length : most) blocks += (length + sizes.block_size - 1) / sizes.block_size;
    order_ = random.permutation(blocks);
    for (int i = 0; i < 2; ++i) {
      layers_.emplace_back(random, sizes, kind, group_size, blocks * sizes.block_size, most.size());
    }
    for (const Layer &layer : layers_) layer.append_fields(table_);
    blocks_.resize(most.size());
  }

  // The next tokens of each sequence, in prefill or, one of each, in decoding.
  void step(const Ints &queries, bool is_prefill) {
    int64_t tokens = 0, width = 0;
    Ints slots;
    for (size_t b = 0; b < queries.size(); ++b) {
      for (int32_t i = 0; i < queries[b]; ++i) slots.push_back(next_slot(b));
      tokens += queries[b];
      width = std::max(width, static_cast<int64_t>(blocks_[b].size()));
    }
    Ints tables;
    for (Ints blocks : blocks_) {
      blocks.resize(width, -1);
      tables.insert(tables.end(), blocks.begin(), blocks.end());
    }
    const int64_t batch = static_cast<int64_t>(queries.size());
    Call call = begin(tokens);
    call.with(slots, {tokens}).with(tables, {batch, width}).with(lengths_, {batch});
    if (is_prefill) call.with(queries, {batch});
    finish(call.run(QwenLayers, QwenLayersInferShape), queries, name_ + (is_prefill ? ", prefill" : ", decoding"));
  }

  // Whole sequences without a cache.
  void whole(int64_t batch, int64_t length) {
    const Ints ids(batch * length);
    Call call = begin(batch * length);
    call.with(ids, {batch, length});
    const Ints queries(batch, static_cast<int32_t>(length));
    finish(call.run(QwenLayersWhole, QwenLayersWholeInferShape), queries, name_ + ", whole");
  }

 private:
  Call begin(int64_t tokens) {
    const int64_t half = sizes_.size / 2;
    x_ = random_.floats(tokens * sizes_.hidden);
    settings_ = {kEpsilon, static_cast<float>(sizes_.block_size)};
    where_ = {reinterpret_cast<int64_t>(table_.data()), static_cast<int64_t>(layers_.size())};
    rotation_ = Rotation(random_, tokens * half);
    Call call;
    call.with(x_, {tokens, sizes_.hidden}).with(settings_, {2}).with(where_, {2}).with(rotation_.cos, {tokens, half});
    call.with(rotation_.sin, {tokens, half}).with(rotation_.query_cos, {tokens, half});
    call.with(rotation_.query_sin, {tokens, half});
    return call;
  }

  void finish(const Floats &actual, const Ints &queries, const std::string &what) {
    Doubles expected;
    int64_t first = 0;
    for (size_t b = 0; b < queries.size(); first += queries[b++]) {
      Doubles x(x_.begin() + first * sizes_.hidden, x_.begin() + (first + queries[b]) * sizes_.hidden);
      for (Layer &layer : layers_) x = queries[b] ? layer.next(x, rotation_, first, layer.memory[b]) : x;
      expected.insert(expected.end(), x.begin(), x.end());
    }
    // The last bit of float32 decides about a number on the edge of a level, and layers multiply what that makes.
    check(actual, expected, sizes_.is_8_bits ? 0.25 : 1e-4, what);
  }

  int32_t next_slot(size_t b) {
    const int64_t position = lengths_[b]++, size = sizes_.block_size;
    if (position % size == 0) {
      blocks_[b].push_back(order_.back());
      order_.pop_back();
    }
    return static_cast<int32_t>(blocks_[b].back() * size + position % size);
  }

  Random &random_;
  const Sizes sizes_;
  std::vector<Layer> layers_;
  std::vector<int64_t> table_;
  Ints order_, lengths_;
  std::vector<Ints> blocks_;  // of each sequence
  const std::string name_;
  Floats x_, settings_;
  std::vector<int64_t> where_;
  Rotation rotation_{random_, 0};
};

void check_layers(Random &random) {
  const Kind kinds[] = {Kind::kFloat32, Kind::kFloat16, Kind::kBfloat16, Kind::kInt8, Kind::kInt4};
  const int64_t heads[][2] = {{1, 16}, {3, 64}, {5, 24}, {4, 18}};
  int64_t turn = 0;
  for (const auto &[count, size] : heads) {
    for (const bool is_8_bits : {false, true}) {
      for (const int64_t block_size : {4, 16}) {
        const Sizes sizes{count, size, 40, 50, block_size, is_8_bits};
        Case some(random, sizes, kinds[turn++ % 5], 16, {50, 4, 19, 36, 32});
        some.step({33, 1, 17, 2, 31}, true);
        some.step({1, 1, 1, 1, 1}, false);
        some.step({16, 2, 1, 33, 0}, true);  // what is left of prompts that were begun, of one nothing
        Case lone(random, sizes, kinds[turn % 5], 32, {101});
        lone.step({99}, true);
        lone.step({1}, false);
        lone.step({1}, false);
      }
    }
    for (const Kind kind : kinds) {
      Case(random, {count, size, 36, 50, 16, false}, kind, -1, {0}).whole(1, 1);
      Case(random, {count, size, 40, 34, 16, false}, kind, 6, {0, 0, 0}).whole(3, 40);
    }
  }
}

void check_all(int seed) {
  Random random(seed);
  check_norms(random);
  check_linears(random);
  check_layers(random);
}

#if !defined(__SANITIZE_THREAD__)  // which does not bear with threads that a fork starts
// A fork has the pool's memory, but not its threads.
void check_fork() {
  const pid_t child = fork();
  if (child == 0) {
    Random random(9);
    check_norms(random);
    _exit(0);
  }
  int status = 0;
  if (child < 0 || waitpid(child, &status, 0) < 0 || status != 0) {
    std::fprintf(stderr, "a fork could not use the kernels\n");
    std::_Exit(1);
  }
}
#endif

}  // namespace

int main(int count, char **arguments) {
  QwenSetThreads(count > 1 ? std::atoi(arguments[1]) : 1);
  std::vector<std::thread> callers;
  for (int seed = 0; seed < 3; ++seed) callers.emplace_back(check_all, seed);
  for (std::thread &caller : callers) caller.join();
#if !defined(__SANITIZE_THREAD__)
  check_fork();
#endif
  return 0;
}
