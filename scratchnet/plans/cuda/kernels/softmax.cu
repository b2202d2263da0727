// Softmax, cross-entropy and their gradient, as in functional/softmax.py; and the running totals.
//
//     log p[k] = z[k] - max z - log sum_j exp(z[j] - max z)
//     loss     = -(1 - s) log p[label] - s / K sum_k log p[k]                       s: label smoothing
//     dz[k]    = (p[k] - s / K - (1 - s) [k = label]) / N
//
// A warp has one image, a block four; each lane has every 32nd class, and lanes exchange what they have by shuffles:
//
//     classes   0  1  2 ... 31 | 32 33 ...        maximum, its place, sum of exponentials, sum of logarithms: for each
//     lanes     0  1  2 ... 31 |  0  1 ...        five exchanges, with the lane 16, 8, 4, 2, 1 away
//
// Bytes: the logits, three times, from a cache after the first: 512 x 10 numbers are 20 kB. The limit is the time of
// a launch. (Calculated, not yet measured.)
#include "common.cuh"

#define WHOLE_WARP 0xffffffff

__device__ static inline float warp_sum(float x) {
    for (int away = 16; away > 0; away /= 2) x += __shfl_xor_sync(WHOLE_WARP, x, away);
    return x;
}

extern "C" __global__ void softmax_cross_entropy(const float* logits, const long long* __restrict__ labels,
                                                 float* __restrict__ losses, float* __restrict__ correct,
                                                 float* dlogits, int N, int K, float smoothing) {
    int n = blockIdx.x * blockDim.y + threadIdx.y, lane = threadIdx.x;
    if (n >= N) return;  // the whole warp
    const float* z = logits + (long long)n * K;
    long long label = labels[n];

    float largest = __uint_as_float(0xff800000);  // minus infinity
    int place = K;
    for (int k = lane; k < K; k += 32)
        if (z[k] > largest) largest = z[k], place = k;
    for (int away = 16; away > 0; away /= 2) {
        float other = __shfl_xor_sync(WHOLE_WARP, largest, away);
        int its_place = __shfl_xor_sync(WHOLE_WARP, place, away);
        if (other > largest || (other == largest && its_place < place)) largest = other, place = its_place;
    }

    float sum = 0;
    for (int k = lane; k < K; k += 32) sum += expf(z[k] - largest);
    float log_sum = logf(warp_sum(sum));

    float of_label = 0, of_all = 0;
    for (int k = lane; k < K; k += 32) {
        float log_p = z[k] - largest - log_sum;
        of_all += log_p;
        if (k == label) of_label = log_p;
        if (dlogits)
            dlogits[(long long)n * K + k] = (expf(log_p) - smoothing / K - (k == label ? 1 - smoothing : 0)) / N;
    }
    of_label = warp_sum(of_label);
    of_all = warp_sum(of_all);
    if (lane != 0) return;
    losses[n] = -(1 - smoothing) * of_label - (smoothing ? smoothing / K * of_all : 0);
    correct[n] = place == label;
}

// One block: a thread has every 256th image, and the threads meet as in block_sum (sums.cuh).
extern "C" __global__ void add_up(const float* __restrict__ losses, const float* __restrict__ correct,
                                  double* __restrict__ totals, int N) {
    __shared__ double met[2][256];
    int me = threadIdx.x;
    double loss = 0, right = 0;
    for (int n = me; n < N; n += blockDim.x) loss += losses[n], right += correct[n];
    met[0][me] = loss;
    met[1][me] = right;
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();
        if (me < half)
            for (int i = 0; i < 2; i++) met[i][me] += met[i][me + half];
    }
    if (me != 0) return;
    totals[0] += met[0][0];
    totals[1] += met[1][0];
    totals[2] += N;
}
