/* Layer norm and RMS norm of one row. */
#ifndef GPTKIT_NORM_H
#define GPTKIT_NORM_H

#include "vectors.h"

enum { LONGEST_ROW = 4096 };

/* x, which holds elements from i on, with 0 for elements n and after */
INLINE vec zero_from(vec x, int64_t i, int64_t n) {
  return i + LANES > n ? choose((ivec)(lane_index < (uint32_t)(n - i)), x, splat(0)) : x;
}

/* y = (x - mean) rstd weight + bias; y may be x. If not `centered`, the mean is taken as 0 (RMSNorm). Stores mean and
 * rstd in `stats`, unless it is NULL. A row is read from memory once and kept in fp32. */
INLINE void norm_row(const void *x, const void *weight, const void *bias, void *y, float *stats, int64_t C,
                     float eps, int centered, int bf16) {
  float row[LONGEST_ROW];
  vec total[2] = {{0}, {0}}, squares[2] = {{0}, {0}}; /* two of each, to hide latency */
  int which = 0;
  for (int64_t i = 0; i < C; i += LANES, which ^= 1) {
    vec here = load_upto(x, i, C, bf16);
    store(row, i, here, 0);
    if (centered)
      total[which] += here;
    else
      squares[which] += here * here;
  }
  float mean = centered ? sum_of(total[0] + total[1]) / C : 0.0f;
  if (centered)
    for (int64_t i = 0; i < C; i += LANES, which ^= 1) {
      vec here = zero_from(load(row, i, 0) - mean, i, C);
      store(row, i, here, 0);
      squares[which] += here * here;
    }
  float rstd = 1.0f / sqrtf(sum_of(squares[0] + squares[1]) / C + eps);
  if (stats) stats[0] = mean, stats[1] = rstd;
  for (int64_t i = 0; i < C; i += LANES) {
    vec out = load(row, i, 0) * rstd;
    if (weight) out *= load_upto(weight, i, C, bf16);
    if (bias) out += load_upto(bias, i, C, bf16);
    store_upto(y, i, C, out, bf16);
  }
}

#endif
