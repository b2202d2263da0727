// Convolution as one matrix product: patches to rows (im2col), and the way back (col2im).
//
// The product is cuBLAS's. These two kernels do for it what functional/conv.py does, with the same symbols:
//
//     im2col    columns[(n, oh, ow), (i, j, c)] = x[n, oh*S + i - P, ow*S + j - P, c], or 0 outside the image
//     col2im    dx[n, h, w, c] = sum over i, j of columns[(n, oh, ow), (i, j, c)]
//                                where oh*S + i - P = h and ow*S + j - P = w
//
// col2im gathers: a thread looks for the at most K*K places in the matrix that its pixel was copied to, and adds
// them up in the order of (i, j). No other thread writes that pixel, so there are no atomics, and always the same bits.
//
// A thread has one pixel and one pack of channels, and walks over the kernel (3 x 3 here, C = 64, WIDE = 4):
//
//     row of the matrix   | i,j = 0,0     | 0,1           | 0,2           | ... | 2,2           |
//                         | c = 0 ... 63  | c = 0 ... 63  | c = 0 ... 63  |     | c = 0 ... 63  |
//     16 threads write      ================  then this      then this            ================
//     and they read       x[n, oh-1, ow-1], then x[n, oh-1, ow], ...: each pixel 9 times, 8 of them from a cache
//
// A row of the matrix may be wider than a patch: 32 for the 27 numbers of an image's 3 x 3 x 3. The rest are zeros, so
// that rows begin on 16 bytes and tensor cores multiply whole groups of eight.
//
// Bytes, VGG16 at 32 px, batch 512, float32 (bfloat16 columns are half as large; nothing is computed but up to 9
// additions per number in col2im):
//
//     layer                    x       columns        layer                    x       columns
//     1_1   32 x 32 x   3      6 MB      57 MB        3_2 3_3   8 x 8 x 256   34 MB    302 MB
//     1_2   32 x 32 x  64    134 MB    1208 MB        4_1       4 x 4 x 256    8 MB     75 MB
//     2_1   16 x 16 x  64     34 MB     302 MB        4_2 4_3   4 x 4 x 512   17 MB    151 MB
//     2_2   16 x 16 x 128     67 MB     604 MB        5_1 - 3   2 x 2 x 512    4 MB     38 MB
//     3_1    8 x  8 x 128     17 MB     151 MB
//
// The limit is memory bandwidth: 3.4 GB for all layers together, written by im2col, and read by the product if they
// no longer lie in the L2 cache. (Calculated, not yet measured. An implicit product, which never stores the columns,
// is the next step.)
#include "common.cuh"

extern "C" __global__ void im2col(const float* __restrict__ x, operand* __restrict__ columns, int N, int H, int W,
                                  int C, int OH, int OW, int K, int S, int P, int width) {
    int packs = C / WIDE, pack = my_pack(), filled = K * K * packs, whole = width / WIDE;
    if (pack >= packs) return;
    unsigned rows = (unsigned)N * OH * OW;  // below 2^31
    for (unsigned row = my_row(); row < rows; row += row_step()) {
        int ow = row % OW, oh = row / OW % OH, n = row / OW / OH;
        const Pack* image = (const Pack*)x + (long long)n * H * W * packs + pack;
        Operands* to = (Operands*)columns + (long long)row * whole + pack;
        for (int i = 0; i < K; i++) {
            int h = oh * S + i - P;
            for (int j = 0; j < K; j++) {
                int w = ow * S + j - P;
                Pack value = {};
                if (0 <= h && h < H && 0 <= w && w < W) value = image[((long long)h * W + w) * packs];
                *to = to_operands(value);
                to += packs;
            }
        }
        for (int k = filled + pack; k < whole; k += packs, to += packs) *to = to_operands(Pack{});
    }
}

extern "C" __global__ void col2im(const float* __restrict__ columns, float* __restrict__ dx, int N, int H, int W,
                                  int C, int OH, int OW, int K, int S, int P) {
    int packs = C / WIDE, pack = my_pack();
    if (pack >= packs) return;
    unsigned rows = (unsigned)N * H * W;  // below 2^31
    for (unsigned row = my_row(); row < rows; row += row_step()) {
        int w = row % W, h = row / W % H, n = row / W / H;
        const Pack* from = (const Pack*)columns + pack;
        Pack sum = {};
        for (int i = 0; i < K; i++) {
            int oh = (h + P - i) / S;
            if (h + P < i || oh >= OH || oh * S != h + P - i) continue;  // no patch has this pixel at row i
            for (int j = 0; j < K; j++) {
                int ow = (w + P - j) / S;
                if (w + P < j || ow >= OW || ow * S != w + P - j) continue;
                long long patch = ((long long)n * OH + oh) * OW + ow;
                Pack value = from[(patch * K * K + i * K + j) * packs];
                for (int k = 0; k < WIDE; k++) sum.at[k] += value.at[k];
            }
        }
        ((Pack*)dx)[(long long)row * packs + pack] = sum;
    }
}
