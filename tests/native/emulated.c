/* Calls one function of the library with arrays from standard input, and writes them back to standard output: so that
 * the library can be compiled for another processor and run under an emulator (test_emulated.py).
 *
 * Input: 16 int64 (the first is the number of the function), 2 floats, and 12 arrays, each its length in bytes (int64)
 * and its bytes; an empty one is NULL. Output: the arrays, in the same form.
 */
#include <stdio.h>

#include "operations.h"

enum { NORM, NORM_BACKWARD, ACTIVATION, GATED, CROSS_ENTROPY, ROTATE, ATTENTION, ATTENTION_BACKWARD, DROPOUT };
enum { ARRAYS = 12 };

static void read_exactly(void *to, size_t size) {
  if (size && fread(to, size, 1, stdin) != 1) exit(2);
}

int main(void) {
  int64_t n[16], size[ARRAYS];
  float f[2];
  void *a[ARRAYS];
  read_exactly(n, sizeof n), read_exactly(f, sizeof f);
  for (int i = 0; i < ARRAYS; i++) {
    read_exactly(&size[i], sizeof size[i]);
    a[i] = size[i] ? malloc((size_t)size[i]) : NULL;
    read_exactly(a[i], (size_t)size[i]);
  }
  int bf16 = (int)n[1], failed = 0;
  Rows rows = {n[2], n[3], n[4], n[5]};
  int64_t strides[3] = {n[3] * n[4] * n[5], n[4] * n[5], n[5]};
  Attention attention = {.B = n[2], .H = n[3], .T = n[4], .D = n[5], .bias_head = n[6], .bf16 = bf16, .threads = 1};
  int64_t *all[] = {attention.q, attention.k, attention.v, attention.out};
  for (int i = 0; i < 4; i++) memcpy(all[i], strides, sizeof strides);
  switch (n[0]) {
    case NORM:
      norm_forward(a[0], strides, &rows, a[1], a[2], a[3], a[4], f[0], (int)n[6], bf16, 1);
      break;
    case NORM_BACKWARD:
      failed = norm_backward(a[0], strides, a[1], strides, &rows, a[2], a[3], NULL, a[4], strides, a[5], a[6], (int)n[6],
                             bf16, 1);
      break;
    case ACTIVATION: activation((int)n[2], a[0], a[1], a[2], n[3], bf16, 1); break;
    case GATED: gated(a[0], a[1], a[2], n[2], n[3], bf16, 1); break;
    case CROSS_ENTROPY: failed = cross_entropy(a[0], a[1], a[2], a[3], n[2], n[3], f[0], bf16, 1) >= 0; break;
    case ROTATE: rotate(a[0], strides, &rows, a[1], a[2], a[3], strides, (int)n[6], bf16, 1); break;
    case ATTENTION: failed = attention_forward(&attention, a[0], a[1], a[2], a[3], a[4], a[5]); break;
    case ATTENTION_BACKWARD:
      failed = attention_backward(&attention, a[0], a[1], a[2], a[3], a[4], a[6], strides, a[5], a[7], a[8], a[9],
                                  strides, a[10], size[10] / 4);
      break;
    case DROPOUT: dropout(a[0], NULL, a[1], n[2], f[0], (uint64_t)n[3], bf16, 1); break;
    default: return 3;
  }
  for (int i = 0; i < ARRAYS; i++) {
    fwrite(&size[i], sizeof size[i], 1, stdout);
    if (size[i]) fwrite(a[i], (size_t)size[i], 1, stdout);
  }
  return failed;
}
