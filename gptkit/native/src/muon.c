/* Muon (Jordan et al. 2024): momentum, orthogonalised by Newton and Schulz, for matrices of one shape.
 *
 * Each matrix is one processor's, from its gradient to its new values, so what comes out does not depend on the
 * number of threads. Products are in bf16 with sums in fp32. Two of the three of an iteration are symmetric: of
 * those only what is on the diagonal and right of it is computed, and then mirrored.
 */
#include "gemm.h"

enum { ITERATIONS = 5 };

typedef struct {
  float momentum, kept, size; /* what the weight decay leaves; the update's factor */
} Muon;

#if HAS_BF16_PRODUCTS

static const float quintic[3] = {3.4445f, -4.7750f, 2.0315f};

typedef struct {
  float *wide;              /* the matrix in fp32 */
  uint16_t *x, *gram, *sum; /* (n, m), (n, n), (n, n) */
  word *packed;
} Workspace;

static int64_t words_for(int64_t n, int64_t m) { return MAX(packed_size(n, m), packed_size(n, n)); }

static int64_t workspace_size(int64_t n, int64_t m) { /* in bytes, whole lines */
  return (4 * n * m + 2 * n * m + 4 * n * n + 4 * words_for(n, m) + 4 * 64 + 63) / 64 * 64;
}

static Workspace workspace_in(char *memory, int64_t n, int64_t m) {
  Workspace r = {.wide = (float *)memory};
  r.packed = (word *)(memory + (4 * n * m + 63) / 64 * 64);
  r.x = (uint16_t *)(r.packed + words_for(n, m)), r.gram = r.x + n * m, r.sum = r.gram + n * n;
  return r;
}

/* out (R, N) = a (R, K) b and what `more` adds, b packed. `symmetric` leaves out what is left of the diagonal. */
static void combine(const uint16_t *a, const word *b, uint16_t *out, int64_t R, int64_t K, int64_t N, Epilogue more,
                    int symmetric) {
  for (int64_t panel = 0; panel < panels_of(N); panel++) {
    int64_t last = symmetric ? MIN(R, (panel + 1) * COLUMNS) : R;
    for (int64_t r = 0; r < last; r += TILE_ROWS)
      product_tile(a, b, out, r, MIN(TILE_ROWS, R - r), K, N, panel, &more);
  }
}

/* What is right of the diagonal, to the left of it: x (n, n) */
static void mirror(uint16_t *x, int64_t n) {
  for (int64_t block = 0; block < n; block += LANES)
    for (int64_t i = block; i < n; i++)
      for (int64_t j = block; j < MIN(block + LANES, i); j++) x[i * n + j] = x[j * n + i];
}

/* Singular values of x (n, m), n <= m, brought near 1 */
static void newton_schulz(const Workspace *r, int64_t n, int64_t m) {
  for (int step = 0; step < ITERATIONS; step++) {
    pack_across(r->x, n, m, r->packed, 1);
    combine(r->x, r->packed, r->gram, n, m, n, as_it_is, 1);
    mirror(r->gram, n);
    pack_across(r->gram, n, n, r->packed, 1); /* which is its own transpose */
    combine(r->gram, r->packed, r->sum, n, n, n, (Epilogue){quintic[2], quintic[1], r->gram, NULL}, 1);
    mirror(r->sum, n);
    pack_down(r->x, n, m, r->packed);
    combine(r->sum, r->packed, r->x, n, n, m, (Epilogue){1, quintic[0], r->x, NULL}, 0);
  }
}

static void update_one(float *values, const float *gradient, float *average, int64_t rows, int64_t columns,
                       const Muon *s, const Workspace *r) {
  int64_t size = rows * columns;
  vec squares = {0};
  for (int64_t i = 0; i < size; i += LANES) {
    vec g = load_upto(gradient, i, size, 0), a = load_upto(average, i, size, 0);
    a += (g - a) * (1 - s->momentum);
    store_upto(average, i, size, a, 0);
    g += (a - g) * s->momentum;
    store_upto(r->wide, i, size, g, 0);
    squares += g * g;
  }
  float scale = 1 / MAX(sqrtf(sum_of(squares)), 1e-7f);
  int tall = rows > columns;
  if (tall)
    for (int64_t j = 0; j < rows; j += LANES) /* a block at a time, so that lines of both stay in the cache */
      for (int64_t i = 0; i < columns; i++)
        for (int64_t k = j; k < MIN(j + LANES, rows); k++)
          r->x[i * rows + k] = to_bf16(r->wide[k * columns + i] * scale);
  else
    for (int64_t i = 0; i < size; i += LANES) store_upto(r->x, i, size, load_upto(r->wide, i, size, 0) * scale, 1);
  newton_schulz(r, MIN(rows, columns), MAX(rows, columns));
  if (tall)
    for (int64_t j = 0; j < rows; j += LANES)
      for (int64_t i = 0; i < columns; i++)
        for (int64_t k = j; k < MIN(j + LANES, rows); k++)
          r->wide[k * columns + i] = from_bf16(r->x[i * rows + k]);
  else
    for (int64_t i = 0; i < size; i += LANES) store_upto(r->wide, i, size, load_upto(r->x, i, size, 1), 0);
  for (int64_t i = 0; i < size; i += LANES)
    store_upto(values, i, size, load_upto(values, i, size, 0) * s->kept + s->size * load_upto(r->wide, i, size, 0), 0);
}

/* Matrices (count, rows, columns) in fp32, with their gradients and averages. Returns 0, or 1 where memory is not
 * to be had. */
EXPORT int muon(float *values, const float *gradient, float *average, int64_t count, int64_t rows, int64_t columns,
                const Muon *s, int threads) {
  int64_t n = MIN(rows, columns), m = MAX(rows, columns), size = rows * columns, room = workspace_size(n, m);
  char *memory = aligned_alloc(64, (size_t)(room * threads));
  if (!memory) return 1;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (int64_t k = 0; k < count; k++) {
    Workspace r = workspace_in(memory + THREAD * room, n, m);
    update_one(values + k * size, gradient + k * size, average + k * size, rows, columns, s, &r);
  }
  free(memory);
  return 0;
}

#else

EXPORT int muon(float *values, const float *gradient, float *average, int64_t count, int64_t rows, int64_t columns,
                const Muon *s, int threads) {
  (void)values, (void)gradient, (void)average, (void)count, (void)rows, (void)columns, (void)s, (void)threads;
  return 1;
}

#endif
