// Back through ReLU, dropout and pooling, and the first stage of the bias's gradient, in one pass.
//
//     mask      dz = factor * dy where y > 0, else 0          y = max(v, 0), and after dropout times its factor
//     unpool    dz of the pixel that won its window = dy, of the others 0
//     partial   sums of dz, each over a share of the rows (sums.cu)
//
// dz is what the products of the backward pass read, so it is rounded to bfloat16 here where they want that; it is
// summed before it is rounded.
//
// A block has the rows of one partial sum, and a tile of columns; a thread keeps its sums in registers:
//
//     rows          packs of channels ->
//       0..1023     | block (0,0) | block (0,1) |       thread (x, y) takes rows y, y + blockDim.y, ...
//      1024..2047   | block (1,0) | block (1,1) |       at the end the threads of a column of the block meet
//       ...
//
// For unpool a row is a window. Its thread reads dy and the code once and writes all four pixels; the last window of a
// row or column also clears the odd one beside it, which is in no window.
//
// Bytes, VGG16 at 32 px, batch 512, dz in float32: read dy and y and write dz, or read dy and a code and write dz:
//
//     1_1   403 MB      2_1   201 MB      3_1 3_2   101 MB each      4_1 4_2   50 MB each     5_1 5_2   13 MB each
//     1_2   176 MB      2_2    88 MB      3_3        44 MB           4_3       22 MB          5_3        6 MB
//
// 1.3 GB for all layers together: the limit is memory bandwidth. (Calculated, not yet measured.)
#include "common.cuh"
#include "sums.cuh"

extern "C" __global__ void mask(const float* dy, const float* __restrict__ y, operand* dz,
                                float* __restrict__ partial, float factor, long long rows, int packs) {
    int pack = my_pack();
    RowRange range(rows);
    Pack sum = {};
    if (pack < packs) {
        for (long long row = range.first + threadIdx.y; row < range.stop; row += blockDim.y) {
            long long k = row * packs + pack;
            Pack g = ((const Pack*)dy)[k];
            if (y) {
                Pack passed = ((const Pack*)y)[k];
                for (int i = 0; i < WIDE; i++) g.at[i] = passed.at[i] > 0 ? g.at[i] : 0;
            }
            for (int i = 0; i < WIDE; i++) {
                g.at[i] *= factor;
                sum.at[i] += g.at[i];
            }
            if (dz) ((Operands*)dz)[k] = to_operands(g);
        }
    }
    if (!partial) return;
    sum = block_sum(sum);
    if (threadIdx.y == 0 && pack < packs) ((Pack*)partial)[(long long)blockIdx.x * packs + pack] = sum;
}

extern "C" __global__ void unpool(const float* __restrict__ dy, const unsigned char* __restrict__ code,
                                  operand* __restrict__ dz, float* __restrict__ partial, int N, int H, int W,
                                  int packs) {
    int pack = my_pack();
    int OH = H / 2, OW = W / 2;
    RowRange range((long long)N * OH * OW);
    Pack sum = {};
    if (pack < packs) {
        for (unsigned row = range.first + threadIdx.y; row < range.stop; row += blockDim.y) {  // below 2^31
            int ow = row % OW, oh = row / OW % OH, n = row / OW / OH;
            Pack g = ((const Pack*)dy)[(long long)row * packs + pack];
            Codes winner = ((const Codes*)code)[(long long)row * packs + pack];
            for (int i = 0; i < WIDE; i++)
                if (winner.at[i] < 4) sum.at[i] += g.at[i];
            int down = oh == OH - 1 ? H - 2 * oh : 2, across = ow == OW - 1 ? W - 2 * ow : 2;  // 3 where it is odd
            for (int i = 0; i < down; i++) {
                for (int j = 0; j < across; j++) {
                    Pack pixel;
                    for (int k = 0; k < WIDE; k++)
                        pixel.at[k] = i < 2 && j < 2 && winner.at[k] == 2 * i + j ? g.at[k] : 0;
                    long long at = ((long long)n * H + 2 * oh + i) * W + 2 * ow + j;
                    ((Operands*)dz)[at * packs + pack] = to_operands(pixel);
                }
            }
        }
    }
    if (!partial) return;
    sum = block_sum(sum);
    if (threadIdx.y == 0 && pack < packs) ((Pack*)partial)[(long long)blockIdx.x * packs + pack] = sum;
}
