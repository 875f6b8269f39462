/* Muon (Jordan et al. 2024): momentum, orthogonalized by Newton-Schulz iterations, for matrices of one shape.
 *
 * One thread computes a matrix from its gradient to its new values, so the result does not depend on the number of
 * threads. Products are in bf16 with sums in fp32. Two of the three products of an iteration are symmetric: only the
 * diagonal and the upper triangle are computed, then mirrored.
 */
#include "gemm.h"

typedef struct {
  float momentum, decay_factor, step_size; /* decay_factor: 1 - lr wd */
  int32_t iterations;
  const float (*quintics)[3]; /* of Newton-Schulz: coefficients of each iteration */
} Muon;

#if HAS_BF16_PRODUCTS

typedef struct {
  float *fp32;              /* the matrix in fp32 */
  uint16_t *x, *gram, *sum; /* (n, m), (n, n), (n, n) */
  pair *packed;
} Workspace;

static int64_t pairs_for(int64_t n, int64_t m) { return MAX(packed_size(n, m), packed_size(n, n)); }

static int64_t workspace_size(int64_t n, int64_t m) { /* in bytes, whole cache lines */
  return (4 * n * m + 2 * n * m + 4 * n * n + 4 * pairs_for(n, m) + 4 * 64 + 63) / 64 * 64;
}

static Workspace workspace_in(char *memory, int64_t n, int64_t m) {
  Workspace r = {.fp32 = (float *)memory};
  r.packed = (pair *)(memory + (4 * n * m + 63) / 64 * 64);
  r.x = (uint16_t *)(r.packed + pairs_for(n, m)), r.gram = r.x + n * m, r.sum = r.gram + n * n;
  return r;
}

/* out (R, N) = a (R, K) b with the epilogue, b packed. If `symmetric`, tiles below the diagonal are not computed. */
static void product(const uint16_t *a, const pair *b, uint16_t *out, int64_t R, int64_t K, int64_t N, Epilogue epilogue,
                    int symmetric) {
  for (int64_t panel = 0; panel < panels_of(N); panel++) {
    int64_t last = symmetric ? MIN(R, (panel + 1) * COLUMNS) : R;
    for (int64_t r = 0; r < last; r += TILE_ROWS)
      product_tile(a, b, out, r, MIN(TILE_ROWS, R - r), K, N, panel, &epilogue);
  }
}

/* Copies the upper triangle of x (n, n) to the lower one */
static void mirror(uint16_t *x, int64_t n) {
  for (int64_t block = 0; block < n; block += LANES)
    for (int64_t i = block; i < n; i++)
      for (int64_t j = block; j < MIN(block + LANES, i); j++) x[i * n + j] = x[j * n + i];
}

/* Brings the singular values of x (n, m), n <= m, near 1 */
static void newton_schulz(const Muon *s, const Workspace *r, int64_t n, int64_t m) {
  for (int step = 0; step < s->iterations; step++) {
    const float *quintic = s->quintics[step];
    pack_k(r->x, n, m, r->packed, 1);
    product(r->x, r->packed, r->gram, n, m, n, NO_EPILOGUE, 1);
    mirror(r->gram, n);
    pack_k(r->gram, n, n, r->packed, 1); /* gram is its own transpose */
    product(r->gram, r->packed, r->sum, n, n, n, (Epilogue){quintic[2], quintic[1], r->gram, NULL}, 1);
    mirror(r->sum, n);
    pack_n(r->x, n, m, r->packed);
    product(r->sum, r->packed, r->x, n, n, m, (Epilogue){1, quintic[0], r->x, NULL}, 0);
  }
}

static void update_one(float *values, const float *gradient, float *momentum_buffer, int64_t rows, int64_t columns,
                       const Muon *s, const Workspace *r) {
  int64_t size = rows * columns;
  vec squares = {0};
  for (int64_t i = 0; i < size; i += LANES) {
    vec g = load_upto(gradient, i, size, 0), a = load_upto(momentum_buffer, i, size, 0);
    a += (g - a) * (1 - s->momentum);
    store_upto(momentum_buffer, i, size, a, 0);
    g += (a - g) * s->momentum;
    store_upto(r->fp32, i, size, g, 0);
    squares += g * g;
  }
  float scale = 1 / MAX(sqrtf(sum_of(squares)), 1e-7f);
  int tall = rows > columns;
  if (tall)
    for (int64_t j = 0; j < rows; j += LANES) /* in blocks, so that the lines of both stay in the cache */
      for (int64_t i = 0; i < columns; i++)
        for (int64_t k = j; k < MIN(j + LANES, rows); k++)
          r->x[i * rows + k] = to_bf16(r->fp32[k * columns + i] * scale);
  else
    for (int64_t i = 0; i < size; i += LANES) store_upto(r->x, i, size, load_upto(r->fp32, i, size, 0) * scale, 1);
  newton_schulz(s, r, MIN(rows, columns), MAX(rows, columns));
  if (tall)
    for (int64_t j = 0; j < rows; j += LANES)
      for (int64_t i = 0; i < columns; i++)
        for (int64_t k = j; k < MIN(j + LANES, rows); k++)
          r->fp32[k * columns + i] = from_bf16(r->x[i * rows + k]);
  else
    for (int64_t i = 0; i < size; i += LANES) store_upto(r->fp32, i, size, load_upto(r->x, i, size, 1), 0);
  for (int64_t i = 0; i < size; i += LANES)
    store_upto(values, i, size,
               load_upto(values, i, size, 0) * s->decay_factor + s->step_size * load_upto(r->fp32, i, size, 0), 0);
}

/* Matrices (count, rows, columns) in fp32, their gradients and momentum buffers. Returns 0, or 1 if memory cannot be
 * allocated. */
EXPORT int muon(float *values, const float *gradient, float *momentum_buffer, int64_t count, int64_t rows,
                int64_t columns, const Muon *s, int threads) {
  int64_t n = MIN(rows, columns), m = MAX(rows, columns), size = rows * columns, bytes = workspace_size(n, m);
  char *memory = aligned_alloc(64, (size_t)(bytes * threads));
  if (!memory) return 1;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (int64_t k = 0; k < count; k++) {
    Workspace r = workspace_in(memory + THREAD * bytes, n, m);
    update_one(values + k * size, gradient + k * size, momentum_buffer + k * size, rows, columns, s, &r);
  }
  free(memory);
  return 0;
}

#else

EXPORT int muon(float *values, const float *gradient, float *momentum_buffer, int64_t count, int64_t rows,
                int64_t columns, const Muon *s, int threads) {
  (void)values, (void)gradient, (void)momentum_buffer, (void)count, (void)rows, (void)columns, (void)s, (void)threads;
  return 1;
}

#endif
