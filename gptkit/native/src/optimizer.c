/* Gradients and AdamW: passes over all parameters of a model, once per step. */
#include "vectors.h"

enum { CHUNK = 16384 }; /* elements of one partial sum, so that the order of the sum does not depend on threads */

/* Returns the sum of the squares, of sixteen partial sums: fewer would be less precise */
INLINE double collect(const void *from, float *to, int64_t n, float scale, int add, int bf16) {
  vec squares[16 / LANES] = {{0}};
  for (int64_t start = 0; start < n; start += 16)
    for (int part = 0; part < 16 / LANES; part++) {
      int64_t i = start + part * LANES;
      vec g = load_upto(from, i, n, bf16);
      if (add) g += load_upto(to, i, n, 0);
      g *= scale;
      store_upto(to, i, n, g, 0);
      squares[part] += g * g;
    }
  double sum = 0;
  for (int part = 0; part < 16 / LANES; part++) sum += sum_of(squares[part]);
  return sum;
}

/* Copies the gradients of `count` parameters, times scale, to `flat`: parameter p to starts[p] … starts[p + 1]. With
 * `add` it is what is there plus the gradients, times scale. Returns the norm of all; `sums` holds the partial sum of
 * each chunk. */
EXPORT double collect_gradients(const void *const *gradients, const int64_t *starts, int64_t count, float *flat,
                                float scale, int add, double *sums, int bf16, int threads) {
  int64_t size = starts[count], chunks = (size + CHUNK - 1) / CHUNK;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t chunk = 0; chunk < chunks; chunk++) {
    int64_t begin = chunk * CHUNK, end = MIN(begin + CHUNK, size), p = 0;
    double sum = 0;
    while (starts[p + 1] <= begin) p++;
    for (; begin < end; p++) {
      int64_t to = MIN(starts[p + 1], end);
      if (to > begin) {
        const void *from = at(gradients[p], begin - starts[p], bf16);
        sum += bf16 ? collect(from, flat + begin, to - begin, scale, add, 1)
                    : collect(from, flat + begin, to - begin, scale, add, 0);
      }
      begin = MAX(begin, to);
    }
    sums[chunk] = sum;
  }
  double total = 0;
  for (int64_t chunk = 0; chunk < chunks; chunk++) total += sums[chunk];
  return sqrt(total);
}

typedef struct {
  float learning_rate, beta1, beta2, eps, weight_decay;
  float correction1, correction2; /* 1 - beta1^t, sqrt(1 - beta2^t) */
} AdamW;

/* AdamW (Loshchilov and Hutter 2019), in place */
EXPORT void adamw(float *values, const float *gradient, float *exp_avg, float *exp_avg_sq, int64_t n, const AdamW *s,
                  int threads) {
  float decay_factor = 1 - s->learning_rate * s->weight_decay, step = s->learning_rate / s->correction1;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t from = 0; from < n; from += CHUNK) {
    int64_t to = MIN(from + CHUNK, n);
    for (int64_t i = from; i < to; i += LANES) {
      vec g = load_upto(gradient, i, to, 0), m = load_upto(exp_avg, i, to, 0), v = load_upto(exp_avg_sq, i, to, 0);
      m += (g - m) * (1 - s->beta1);
      v = v * s->beta2 + g * g * (1 - s->beta2);
      vec root;
      for (int k = 0; k < LANES; k++) root[k] = sqrtf(v[k]);
      vec p = load_upto(values, i, to, 0) * decay_factor;
      store_upto(values, i, to, p - step * m / (root / s->correction2 + s->eps), 0);
      store_upto(exp_avg, i, to, m, 0);
      store_upto(exp_avg_sq, i, to, v, 0);
    }
  }
}
