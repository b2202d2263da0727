// Batch normalisation in training, around the epilogue that normalises (epilogue.cu). Symbols as in functional/norm.py.
//
//     norm_statistics       mean and sum of squared deviations M2 of each channel, over a share of the rows
//     norm_finish           joined: mean, 1 / s = 1 / sqrt(M2 / M + eps), weight / s; the running statistics
//     norm_backward_sums    sum of dy and of dy h, h = (x - mean) / s, over a share of the rows: dbias, dweight
//     norm_backward         dx = weight / s * (dy - dbias / M - h dweight / M)
//     norm_fold             for inference: the running statistics and the convolution's bias, as epilogue.cu takes them
//
// The variance must not be E[x^2] - E[x]^2: where the mean is large against the deviation, nearly all digits cancel.
// So a thread subtracts its own first number K from all of its numbers (Chan, Golub and LeVeque 1983, "Algorithms for
// computing the sample variance", sec. 3, shifted data), and what threads and blocks have is joined by the same
// paper's eq. 2.1, for a and b with n_a and n_b numbers each:
//
//     mean = mean_a + d n_b / n        M2 = M2_a + M2_b + d^2 n_a n_b / n        d = mean_b - mean_a, n = n_a + n_b
//
// dy is with respect to what the group returns. After a ReLU it counts where y > 0, and after pooling at the pixel
// that won (kernels with _pool, which take the code of epilogue.cu in place of y). A block has the rows of one partial
// sum and a tile of columns, as in mask.cu; after pooling a row is a window, as there.
//
// Bytes per number: the statistics 4, the sums 12 (dy, x, y), dx 16; after pooling 4, 5 and 9, since dy is a quarter
// there, and a code a byte. VGG16-BN at 32 px, batch 512, has 78 million numbers of the one kind and 64 million of the
// other: 3.6 GB. A dozen operations per number: the limit is memory bandwidth. (Calculated, not yet measured.)
#include "common.cuh"
#include "sums.cuh"

// Count, mean and sum of squared deviations of some numbers.
template <class T> struct Statistics {
    T n, mean, M2;

    __device__ void join(const Statistics& b) {
        if (b.n == 0) return;
        T both = n + b.n, d = b.mean - mean;
        mean += d * (b.n / both);
        M2 += b.M2 + d * d * (n / both * b.n);
        n = both;
    }
};

extern "C" __global__ void norm_statistics(const float* __restrict__ x, float* __restrict__ partial, long long rows,
                                           int packs) {
    __shared__ Statistics<float> met[256];
    int pack = my_pack(), me = threadIdx.y * blockDim.x + threadIdx.x;
    RowRange range(rows);
    long long first = range.first + threadIdx.y;
    Pack K = {}, sum = {}, squares = {};
    if (pack < packs && first < range.stop) {
        K = ((const Pack*)x)[first * packs + pack];
        for (long long row = first + blockDim.y; row < range.stop; row += blockDim.y) {
            Pack value = ((const Pack*)x)[row * packs + pack];
            for (int i = 0; i < WIDE; i++) {
                float d = value.at[i] - K.at[i];
                sum.at[i] += d;
                squares.at[i] += d * d;
            }
        }
    }
    float n = first < range.stop ? (range.stop - first + blockDim.y - 1) / blockDim.y : 0;
    for (int i = 0; i < WIDE; i++) {
        float mean = n ? sum.at[i] / n : 0;
        __syncthreads();  // the channel before this one may still be read
        met[me] = {n, K.at[i] + mean, squares.at[i] - sum.at[i] * mean};
        for (int half = blockDim.y / 2; half > 0; half /= 2) {
            __syncthreads();
            if (threadIdx.y < half) met[me].join(met[me + half * blockDim.x]);
        }
        if (threadIdx.y == 0 && pack < packs) {
            long long at = (long long)blockIdx.x * packs * WIDE + pack * WIDE + i;
            partial[at] = met[me].mean;
            partial[(long long)gridDim.x * packs * WIDE + at] = met[me].M2;
        }
    }
}

// A block has 32 channels and 16 threads for each of them, as in sums.cu.
extern "C" __global__ void norm_finish(const float* __restrict__ partial, const float* __restrict__ weight,
                                       const float* __restrict__ bias_before, float* __restrict__ mean, float* __restrict__ inv_std,
                                       float* __restrict__ scale, float* __restrict__ running_mean,
                                       float* __restrict__ running_var, long long rows, int count, int C, float eps,
                                       float momentum) {
    __shared__ Statistics<double> met[16][32];
    int c = blockIdx.x * 32 + threadIdx.x;
    long long size = (rows + count - 1) / count;  // as RowRange divides them
    Statistics<double> mine = {0, 0, 0};
    if (c < C)
        for (int k = threadIdx.y; k < count; k += 16) {
            long long n = min(size, rows - k * size);
            if (n <= 0) break;
            mine.join({(double)n, partial[(long long)k * C + c], partial[((long long)count + k) * C + c]});
        }
    met[threadIdx.y][threadIdx.x] = mine;
    __syncthreads();
    if (threadIdx.y != 0 || c >= C) return;
    for (int y = 1; y < 16; y++) mine.join(met[y][threadIdx.x]);
    double var = mine.M2 / rows;
    mean[c] = mine.mean;
    inv_std[c] = 1 / sqrt(var + eps);
    scale[c] = weight[c] / sqrt(var + eps);
    float whole_mean = (float)mine.mean + (bias_before ? bias_before[c] : 0);
    running_mean[c] += momentum * (whole_mean - running_mean[c]);
    running_var[c] += momentum * ((float)(var * rows / (rows - 1)) - running_var[c]);
}

extern "C" __global__ void norm_fold(const float* __restrict__ weight, const float* __restrict__ running_mean,
                                     const float* __restrict__ running_var, const float* __restrict__ conv_bias,
                                     float* __restrict__ mean, float* __restrict__ scale, int C, float eps) {
    for (int c = blockIdx.x * blockDim.x + threadIdx.x; c < C; c += gridDim.x * blockDim.x) {
        mean[c] = running_mean[c] - (conv_bias ? conv_bias[c] : 0);
        scale[c] = weight[c] / sqrt((double)running_var[c] + eps);
    }
}

// Add up the two sums over the threads of a block, and write them where its partial sums belong.
__device__ static inline void write_sums(Pack dbias, Pack dweight, float* partial, int pack, int packs) {
    dbias = block_sum(dbias);
    dweight = block_sum(dweight);
    if (threadIdx.y != 0 || pack >= packs) return;
    ((Pack*)partial)[(long long)blockIdx.x * packs + pack] = dbias;
    ((Pack*)partial)[((long long)gridDim.x + blockIdx.x) * packs + pack] = dweight;
}

extern "C" __global__ void norm_backward_sums(const float* __restrict__ dy, const float* __restrict__ y,
                                              const float* __restrict__ x, const float* __restrict__ mean,
                                              const float* __restrict__ inv_std, float* __restrict__ partial,
                                              long long rows, int packs) {
    int pack = my_pack();
    RowRange range(rows);
    Pack dbias = {}, dweight = {};
    if (pack < packs) {
        Pack mu = of_channels(mean, pack, 0), inverse = of_channels(inv_std, pack, 0);
        for (long long row = range.first + threadIdx.y; row < range.stop; row += blockDim.y) {
            long long k = row * packs + pack;
            Pack g = ((const Pack*)dy)[k], value = ((const Pack*)x)[k], passed = y ? ((const Pack*)y)[k] : g;
            for (int i = 0; i < WIDE; i++) {
                if (y && !(passed.at[i] > 0)) continue;
                dbias.at[i] += g.at[i];
                dweight.at[i] += g.at[i] * (value.at[i] - mu.at[i]) * inverse.at[i];
            }
        }
    }
    write_sums(dbias, dweight, partial, pack, packs);
}

extern "C" __global__ void norm_backward_sums_pool(const float* __restrict__ dy, const unsigned char* __restrict__ code,
                                                   const float* __restrict__ x, const float* __restrict__ mean,
                                                   const float* __restrict__ inv_std, float* __restrict__ partial,
                                                   int N, int H, int W, int packs) {
    int pack = my_pack();
    int OH = H / 2, OW = W / 2;
    RowRange range((long long)N * OH * OW);
    Pack dbias = {}, dweight = {};
    if (pack < packs) {
        Pack mu = of_channels(mean, pack, 0), inverse = of_channels(inv_std, pack, 0);
        for (unsigned row = range.first + threadIdx.y; row < range.stop; row += blockDim.y) {  // below 2^31
            int ow = row % OW, oh = row / OW % OH, n = row / OW / OH;
            Pack g = ((const Pack*)dy)[(long long)row * packs + pack];
            Codes winner = ((const Codes*)code)[(long long)row * packs + pack];
            const float* window = x + (((long long)n * H + 2 * oh) * W + 2 * ow) * packs * WIDE + pack * WIDE;
            for (int i = 0; i < WIDE; i++) {
                int at = winner.at[i];
                if (at == 4) continue;
                float value = window[((long long)(at / 2) * W + at % 2) * packs * WIDE + i];
                dbias.at[i] += g.at[i];
                dweight.at[i] += g.at[i] * (value - mu.at[i]) * inverse.at[i];
            }
        }
    }
    write_sums(dbias, dweight, partial, pack, packs);
}

// What a thread keeps of its channels to compute dx.
struct Gradient {
    Pack mean, slope, constant, scale;  // dx = scale * (dy - constant - slope * (x - mean))

    __device__ Gradient(const float* mean_, const float* inv_std, const float* scale_, const float* dweight,
                        const float* dbias, float one_by_M, int pack) {
        mean = of_channels(mean_, pack, 0);
        scale = of_channels(scale_, pack, 0);
        constant = of_channels(dbias, pack, 0);
        slope = of_channels(dweight, pack, 0);
        Pack inverse = of_channels(inv_std, pack, 0);
        for (int i = 0; i < WIDE; i++) {
            constant.at[i] *= one_by_M;
            slope.at[i] *= one_by_M * inverse.at[i];
        }
    }

    __device__ float operator()(float dy, float x, int i) const {
        return scale.at[i] * (dy - constant.at[i] - slope.at[i] * (x - mean.at[i]));
    }
};

extern "C" __global__ void norm_backward(const float* dy, const float* __restrict__ y, const float* x,
                                         const float* __restrict__ mean, const float* __restrict__ inv_std,
                                         const float* __restrict__ scale, const float* __restrict__ dweight,
                                         const float* __restrict__ dbias, float* dx, float one_by_M, long long rows,
                                         int packs) {
    int pack = my_pack();
    if (pack >= packs) return;
    Gradient gradient(mean, inv_std, scale, dweight, dbias, one_by_M, pack);
    for (long long row = my_row(); row < rows; row += row_step()) {
        long long k = row * packs + pack;
        Pack g = ((const Pack*)dy)[k], value = ((const Pack*)x)[k], passed = y ? ((const Pack*)y)[k] : g;
        for (int i = 0; i < WIDE; i++)
            value.at[i] = gradient(!y || passed.at[i] > 0 ? g.at[i] : 0, value.at[i], i);
        ((Pack*)dx)[k] = value;
    }
}

extern "C" __global__ void norm_backward_pool(const float* __restrict__ dy, const unsigned char* __restrict__ code,
                                              const float* x, const float* __restrict__ mean,
                                              const float* __restrict__ inv_std, const float* __restrict__ scale,
                                              const float* __restrict__ dweight, const float* __restrict__ dbias,
                                              float* dx, float one_by_M, int N, int H, int W, int packs) {
    int pack = my_pack();
    if (pack >= packs) return;
    Gradient gradient(mean, inv_std, scale, dweight, dbias, one_by_M, pack);
    int OH = H / 2, OW = W / 2;
    unsigned rows = (unsigned)N * OH * OW;  // below 2^31
    for (unsigned row = my_row(); row < rows; row += row_step()) {
        int ow = row % OW, oh = row / OW % OH, n = row / OW / OH;
        Pack g = ((const Pack*)dy)[(long long)row * packs + pack];
        Codes winner = ((const Codes*)code)[(long long)row * packs + pack];
        int down = oh == OH - 1 ? H - 2 * oh : 2, across = ow == OW - 1 ? W - 2 * ow : 2;  // 3 where it is odd
        for (int i = 0; i < down; i++) {
            for (int j = 0; j < across; j++) {
                long long k = (((long long)n * H + 2 * oh + i) * W + 2 * ow + j) * packs + pack;
                Pack value = ((const Pack*)x)[k];
                for (int m = 0; m < WIDE; m++) {
                    bool won = i < 2 && j < 2 && winner.at[m] == 2 * i + j;
                    value.at[m] = gradient(won ? g.at[m] : 0, value.at[m], m);
                }
                ((Pack*)dx)[k] = value;
            }
        }
    }
}
