// A batch of images from a data set that lies on the GPU: chosen, cropped, mirrored, cut out and normalised.
//
//     x = v * scale - shift, v the pixel, or `fill` in the padding and in the hole
//
// The host has drawn what is random, with the generators of data.Loader, and written it into a table for the whole
// epoch; here only the batch's number is read, from a counter that a replayed graph advances. So the images are those
// of the Loader, to the last bit: multiplication and subtraction are rounded one by one, as NumPy does.
//
//     padded image (crop 4):    40 x 40       row of the table:  index, top, left, mirrored, hole's top, hole's left
//     +--------------------+
//     |  fill   left       |        output pixel (h, w) comes from (top + h - crop, left + w - crop) of the image,
//     |  top +----------+  |        with w counted from the right where it is mirrored; the hole lies in the output
//     |      |  32 x 32 |  |
//     |      +----------+  |        a thread has one output pixel, with its three channels
//     +--------------------+
//
// Where images are resized, after all that, a pixel is a weighted mean of a few, along the row and then along the
// column, in whole numbers, as Pillow computes its bilinear filter (Resample.c). `taps` has a row for each pixel of a
// side: the first pixel that counts, how many do, and their weights.
//
// Bytes: 3 read and 12 written per pixel; 512 images of 32 x 32 are 8 MB. The limit is memory bandwidth, or for so few
// numbers the time of a launch. (Calculated, not yet measured.)
#include "common.cuh"

// The image as the host would have it before resizing and normalisation.
struct Changed {
    const unsigned char* image;
    const int* choice;
    const int* fill;
    int H, W, crop, cutout;

    __device__ int operator()(int h, int w, int c) const {
        int from_h = choice[1] + h - crop, from_w = choice[2] + (choice[3] ? W - 1 - w : w) - crop;
        bool inside = 0 <= from_h && from_h < H && 0 <= from_w && from_w < W;
        bool in_hole = choice[4] <= h && h < choice[4] + cutout && choice[5] <= w && w < choice[5] + cutout;
        return inside && !in_hole ? image[((long long)from_h * W + from_w) * 3 + c] : fill[c];
    }
};

// A sum of pixels times weights of 22 binary places, rounded to a grey level.
__device__ inline int grey_level(int sum) {
    return min(max((sum + (1 << 21)) >> 22, 0), 255);
}

extern "C" __global__ void prepare_images(const unsigned char* __restrict__ images,
                                          const long long* __restrict__ labels, const int* __restrict__ choices,
                                          const long long* __restrict__ batch, const int* __restrict__ taps,
                                          float* __restrict__ x, long long* __restrict__ y, int batch_size, int N,
                                          int H, int W, int OH, int OW, int length, int crop, int cutout, int fill0,
                                          int fill1, int fill2, float scale0, float scale1, float scale2,
                                          float shift0, float shift1, float shift2) {
    const int fill[] = {fill0, fill1, fill2};
    const float scale[] = {scale0, scale1, scale2}, shift[] = {shift0, shift1, shift2};
    long long pixels = (long long)N * OH * OW;
    for (long long pixel = (long long)blockIdx.x * blockDim.x + threadIdx.x; pixel < pixels;
         pixel += (long long)gridDim.x * blockDim.x) {
        int w = pixel % OW, h = pixel / OW % OH, n = pixel / OW / OH;
        const int* choice = choices + (*batch * batch_size + n) * 6;
        long long index = choice[0];
        Changed value = {images + index * H * W * 3, choice, fill, H, W, crop, cutout};
        for (int c = 0; c < 3; c++) {
            int v = 0;
            if (taps) {  // rows first, each rounded to a grey level, then columns
                const int *down = taps + h * length, *across = taps + w * length;
                int sum = 0;
                for (int i = 0; i < down[1]; i++) {
                    int of_row = 0;
                    for (int j = 0; j < across[1]; j++) of_row += value(down[0] + i, across[0] + j, c) * across[2 + j];
                    sum += grey_level(of_row) * down[2 + i];
                }
                v = grey_level(sum);
            } else {
                v = value(h, w, c);
            }
            x[pixel * 3 + c] = __fsub_rn(__fmul_rn(v, scale[c]), shift[c]);
        }
        if (h == 0 && w == 0) y[n] = labels[index];
    }
}

// Add 1 to every counter: the last launch of a step.
extern "C" __global__ void advance(long long* __restrict__ counters, int n) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) counters[i]++;
}
