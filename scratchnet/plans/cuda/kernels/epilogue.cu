// What follows a product: bias or batch normalisation, ReLU, and 2 x 2 max pooling, in one pass.
//
//     v = z + shift                          a bias
//     v = (z - mean) * scale + shift         batch normalisation, with the batch's statistics or the running ones
//     y = max(v, 0)                          where there is a ReLU
//
// and with pooling the largest v of every window of four pixels, and in a byte which of them that was:
//
//     0 1     of equal ones the first, as in functional/pool.py
//     2 3     4: none, as even the largest is not above 0, so that ReLU lets no gradient pass
//
// That byte is all that the backward pass needs: z and the unpooled map are gone. A NaN wins every comparison and
// passes the ReLU, so that the loss shows it.
//
// A thread keeps its channels' vectors in registers and walks down the rows, a grid at a time:
//
//     pixels        packs of channels ->
//       0..15       | block (0,0) | block (0,1) |        without pooling a row is a pixel,
//      16..31       | block (1,0) | block (1,1) |        with pooling it is a window:  w  w+1
//       ...         | then (0,0)  | ...                                                 row below
//
// Bytes, VGG16 at 32 px, batch 512: read z, write y, which is a quarter with pooling (and its bytes a sixteenth):
//
//     1_1   268 MB      2_1   134 MB      3_1 3_2   67 MB each      4_1 4_2   34 MB each     5_1 5_2    8 MB each
//     1_2   176 MB      2_2    88 MB      3_3       44 MB           4_3       22 MB          5_3        6 MB
//
// 1.0 GB for all layers together, a few operations per number: the limit is memory bandwidth. (Calculated, not yet
// measured.)
#include "common.cuh"

// What a thread keeps of its channels.
struct Channels {
    Pack mean, scale, shift;
    bool affine;

    __device__ Channels(const float* shift_, const float* mean_, const float* scale_, int pack) {
        affine = mean_ != nullptr;
        mean = of_channels(mean_, pack, 0);
        scale = of_channels(scale_, pack, 1);
        shift = of_channels(shift_, pack, 0);
    }

    __device__ float operator()(float z, int i) const {
        return affine ? (z - mean.at[i]) * scale.at[i] + shift.at[i] : z + shift.at[i];
    }
};

__device__ inline float apply_relu(float v, int relu) {
    return relu && v <= 0 ? 0 : v;  // not fmaxf(v, 0), which makes 0 of a NaN
}

extern "C" __global__ void epilogue(const float* z, float* y, const float* __restrict__ shift,
                                    const float* __restrict__ mean, const float* __restrict__ scale, int relu,
                                    long long rows, int packs) {
    int pack = my_pack();
    if (pack >= packs) return;
    Channels channels(shift, mean, scale, pack);
    for (long long row = my_row(); row < rows; row += row_step()) {
        long long k = row * packs + pack;
        Pack v = ((const Pack*)z)[k];
        for (int i = 0; i < WIDE; i++) v.at[i] = apply_relu(channels(v.at[i], i), relu);
        ((Pack*)y)[k] = v;
    }
}

extern "C" __global__ void epilogue_pool(const float* __restrict__ z, float* __restrict__ y,
                                         unsigned char* __restrict__ code, const float* __restrict__ shift,
                                         const float* __restrict__ mean, const float* __restrict__ scale, int relu,
                                         int N, int H, int W, int packs) {
    int pack = my_pack();
    if (pack >= packs) return;
    Channels channels(shift, mean, scale, pack);
    int OH = H / 2, OW = W / 2;
    unsigned rows = (unsigned)N * OH * OW;  // below 2^31: a division of 64 bits takes as long as many reads
    for (unsigned row = my_row(); row < rows; row += row_step()) {
        int ow = row % OW, oh = row / OW % OH, n = row / OW / OH;
        const Pack* window = (const Pack*)z + (((long long)n * H + 2 * oh) * W + 2 * ow) * packs + pack;
        Pack best;
        Codes winner;
        for (int position = 0; position < 4; position++) {
            Pack v = window[((long long)(position / 2) * W + position % 2) * packs];
            for (int i = 0; i < WIDE; i++) {
                float candidate = channels(v.at[i], i);
                if (position == 0 || candidate > best.at[i] || candidate != candidate) {
                    best.at[i] = candidate;
                    winner.at[i] = position;
                }
            }
        }
        for (int i = 0; i < WIDE; i++) {
            if (relu && best.at[i] <= 0) winner.at[i] = 4;
            best.at[i] = apply_relu(best.at[i], relu);
        }
        long long k = (long long)row * packs + pack;
        ((Pack*)y)[k] = best;
        if (code) ((Codes*)code)[k] = winner;
    }
}
