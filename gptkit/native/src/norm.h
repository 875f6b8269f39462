/* Layer norm and RMS norm of one row. */
#ifndef GPTKIT_NORM_H
#define GPTKIT_NORM_H

#include "vectors.h"

/* x, which holds elements from i on, with 0 for elements n and after */
INLINE vec zero_from(vec x, int64_t i, int64_t n) {
  return n != WHOLE && i + LANES > n ? choose(lanes_below(MAX(n - i, 0)), x, splat(0)) : x;
}

/* Adds the elements from i on to a sum, or the squares of their differences from the mean */
INLINE void add_vector(vec *sum, const void *x, int64_t i, int64_t n, int squared, float mean, int centered, int bf16) {
  vec here = load_upto(x, i, n, bf16);
  if (!squared) {
    *sum += here;
  } else {
    if (centered) here = zero_from(here - mean, i, n);
    *sum += here * here;
  }
}

/* The sum of all elements, or of the squares; of even and of odd vectors, to hide latency */
INLINE float sum_of_row(const void *x, int64_t C, int squared, float mean, int centered, int bf16) {
  vec even = {0}, odd = {0};
  int64_t i = 0;
  for (; i + 2 * LANES <= C; i += 2 * LANES) {
    add_vector(&even, x, i, WHOLE, squared, mean, centered, bf16);
    add_vector(&odd, x, i + LANES, WHOLE, squared, mean, centered, bf16);
  }
  if (i < C) add_vector(&even, x, i, C, squared, mean, centered, bf16);
  if (i + LANES < C) add_vector(&odd, x, i + LANES, C, squared, mean, centered, bf16);
  return sum_of(even + odd);
}

INLINE vec normalized(const void *x, const void *weight, const void *bias, int64_t i, int64_t n, float mean,
                      float rstd, int centered, int bf16) {
  vec out = load_upto(x, i, n, bf16);
  if (centered) out -= mean;
  out *= rstd;
  if (weight && bias) return out * load_upto(weight, i, n, bf16) + load_upto(bias, i, n, bf16);
  return weight ? out * load_upto(weight, i, n, bf16) : out;
}

/* y = (x - mean) rstd weight + bias; y may be x. If not `centered`, the mean is taken as 0 (RMSNorm). Stores mean and
 * rstd in `stats`, unless it is NULL. */
INLINE void norm_row(const void *x, const void *weight, const void *bias, void *y, float *stats, int64_t C,
                     float eps, int centered, int bf16) {
  float mean = centered ? sum_of_row(x, C, 0, 0, centered, bf16) / C : 0.0f;
  float rstd = 1.0f / sqrtf(sum_of_row(x, C, 1, mean, centered, bf16) / C + eps);
  if (stats) stats[0] = mean, stats[1] = rstd;
  int64_t i = 0;
  for (; i + LANES <= C; i += LANES)
    store(y, i, normalized(x, weight, bias, i, WHOLE, mean, rstd, centered, bf16), bf16);
  if (i < C) store_upto(y, i, C, normalized(x, weight, bias, i, C, mean, rstd, centered, bf16), bf16);
}

#endif
