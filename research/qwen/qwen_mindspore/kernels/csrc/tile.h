// The innermost piece of a linear layer: some rows of a weight times some tokens.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace qwen {

constexpr int kRows = 8;                         // rows of a weight that a tile covers
constexpr int kTileVecs = kLanes == 16 ? 3 : 1;  // vectors of tokens in a tile: accumulators fill the registers
constexpr int kTileTokens = kTileVecs * kLanes;
constexpr int kDotTokens = 4;                    // up to so many tokens are dot products

// out[row][token] of kRows rows and up to kTileTokens tokens.
typedef float Tile[kRows][kTileTokens];

// Tokens of a linear layer's input, laid out for the tiles: [tokens, inputs] for dot products, which have no lanes;
// else groups of `lanes` tokens (kTileTokens, or fewer where that is all), [inputs, lanes] each.
struct Input {
  const float *x;
  int64_t inputs, lanes;
  const float *sums;  // for dot products with quantized weights: the sums of each token's groups, [tokens, groups]
};

// Rows first .. first + kRows of the weights times tokens start .. start + count; rows beyond the last repeat it.
void compute_tile(const Weights &weights, int64_t first, const Input &in, int64_t start, int64_t count, Tile &out);

}  // namespace qwen
