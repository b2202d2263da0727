// Global average pooling, as in functional/pool.py.
//
//     y[n, c] = sum over pixels of x[n, pixel, c] / HW          dx[n, pixel, c] = dy[n, c] / HW
//
// A thread has one channel of one image, and walks over its pixels; backward it has one pixel's. Neighbouring threads
// have neighbouring channels:
//
//     channels   0   1   2  ...  31
//     pixel 0    |   |   |        |
//     pixel 1    v   v   v        v
//
// Bytes: 4 per number of the map; after VGG16 at 224 px, batch 64, it has 64 x 7 x 7 x 512 of them: 6 MB. The limit is
// the time of a launch. (Calculated, not yet measured.)
#include "common.cuh"

extern "C" __global__ void average(const float* __restrict__ x, float* __restrict__ y, int N, int pixels, int C) {
    int c = my_pack();
    if (c >= C) return;
    for (long long n = my_row(); n < N; n += row_step()) {
        const float* from = x + n * pixels * C + c;
        float sum = 0;
        for (int pixel = 0; pixel < pixels; pixel++) sum += from[(long long)pixel * C];
        y[n * C + c] = sum / pixels;
    }
}

extern "C" __global__ void average_backward(const float* __restrict__ dy, float* __restrict__ dx, int N, int pixels,
                                            int C) {
    int c = my_pack();
    if (c >= C) return;
    for (long long row = my_row(); row < (long long)N * pixels; row += row_step())
        dx[row * C + c] = dy[row / pixels * C + c] / pixels;
}
