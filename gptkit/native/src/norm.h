/* Layer norm and RMS norm of one row. */
#ifndef GPTKIT_NORM_H
#define GPTKIT_NORM_H

#include "vectors.h"

enum { LONGEST_ROW = 4096 };

INLINE vec before(vec x, int64_t i, int64_t n) { /* 0 from element n on */
  return i + LANES > n ? choose((ivec)(counting < (uint32_t)(n - i)), x, splat(0)) : x;
}

/* y = (x - mean) rstd gain + bias; y may be x. Without `centre` the mean is 0 (RMS norm). stats takes mean and
 * rstd, where it is given. A row is read from memory once and kept in fp32. */
INLINE void norm_row(const void *x, const void *gain, const void *bias, void *y, float *stats, int64_t C,
                     float eps, int centre, int bf16) {
  float row[LONGEST_ROW];
  vec total[2] = {{0}, {0}}, squares[2] = {{0}, {0}}; /* two of each: one would wait for itself */
  int which = 0;
  for (int64_t i = 0; i < C; i += LANES, which ^= 1) {
    vec here = load_upto(x, i, C, bf16);
    store(row, i, here, 0);
    if (centre)
      total[which] += here;
    else
      squares[which] += here * here;
  }
  float mean = centre ? sum_of(total[0] + total[1]) / C : 0.0f;
  if (centre)
    for (int64_t i = 0; i < C; i += LANES, which ^= 1) {
      vec here = before(load(row, i, 0) - mean, i, C);
      store(row, i, here, 0);
      squares[which] += here * here;
    }
  float rstd = 1.0f / sqrtf(sum_of(squares[0] + squares[1]) / C + eps);
  if (stats) stats[0] = mean, stats[1] = rstd;
  for (int64_t i = 0; i < C; i += LANES) {
    vec out = load(row, i, 0) * rstd;
    if (gain) out *= load_upto(gain, i, C, bf16);
    if (bias) out += load_upto(bias, i, C, bf16);
    store_upto(y, i, C, out, bf16);
  }
}

#endif
