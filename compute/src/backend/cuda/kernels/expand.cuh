// What an adapter adds to the outputs of a product, B z: for the kernels that read those outputs.

// Warps of the thread blocks that expand adapters.
#define EXPAND_WARPS 4

// This warp's items of a work of `tiles x columns`. The warps of a thread block have neighbouring
// tiles and the same column: where the tiles are of one adapter, its weights come out of the L1 cache
// for all but one. Blocks take turns, because full tiles, which take longest, stand together.
struct Share {
    u32 tiles, columns;
    u32 next;
    u32 tile, column;

    __device__ __forceinline__ bool take() {
        if (next >= tiles * columns) {
            return false;
        }
        const u32 group = next / (EXPAND_WARPS * columns), rest = next % (EXPAND_WARPS * columns);
        const u32 width = min((u32)EXPAND_WARPS, tiles - EXPAND_WARPS * group);
        tile = EXPAND_WARPS * group + rest % width;
        column = rest / width;
        next += EXPAND_WARPS * gridDim.x;
        return true;
    }
};

__device__ __forceinline__ Share share_of(u32 tiles, u32 columns) {
    return {tiles, columns, blockIdx.x * EXPAND_WARPS + threadIdx.x / 32};
}

__device__ __forceinline__ const AdapterModule* module_of(const Tile& tile, int layer, int linear) {
    if (tile.adapter == 0) {
        return nullptr;
    }
    const AdapterModule* module = &((const AdapterLayer*)tile.adapter)[layer].modules[linear];
    return module->rank == 0 ? nullptr : module;
}

// 4 values at any address, of which only the first `valid` exist; the others are 0.
__device__ __forceinline__ uint2 load4(const u16* p, int valid) {
    u32 words[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        u32 first = 2 * i < valid ? p[2 * i] : 0;
        u32 second = 2 * i + 1 < valid ? p[2 * i + 1] : 0;
        words[i] = first | second << 16;
    }
    return make_uint2(words[0], words[1]);
}

// What an adapter adds to 64 columns of one linear, for up to 8 rows. A lane holds columns 8 g to
// 8 g + 7 of rows 2 q and 2 q + 1.
struct Update {
    const AdapterModule* module; // null: nothing
    const u16* b;                // row of B of this lane's first column
    const u16* z;                // this lane's (row g) part of z; null: no such row
};

__device__ __forceinline__ Update update_of(
    const Tile& tile, const AdapterModule* module, u32 column, const u16* z, u32 z_stride, u32 first_row) {
    const int g = threadIdx.x % 32 / 4;
    Update update = {module, nullptr, nullptr};
    if (module != nullptr) {
        update.b = (const u16*)(tile.adapter + module->b) + (u64)(column + 8 * g) * module->rank;
        if (first_row + g < tile.rows) {
            update.z = z + (u64)(tile.first_row + first_row + g) * z_stride + module->z;
        }
    }
    return update;
}

template <int N, bool ALIGNED>
__device__ __forceinline__ void expand_ranks(
    float (&acc)[N][4][4], const Update (&updates)[N], const int (&ranks)[N], int most) {
    const int q = threadIdx.x % 4;
#pragma unroll 1
    for (int k = 4 * q; k - 4 * q < most; k += 16) {
        // All loads first: one after the other they would wait for memory each time.
        uint2 columns[N][8], z[N];
#pragma unroll
        for (int n = 0; n < N; ++n) {
            const bool exists = k < ranks[n];
#pragma unroll
            for (int c = 0; c < 8; ++c) {
                const u16* from = updates[n].b + c * ranks[n] + k;
                if (ALIGNED) {
                    columns[n][c] = exists ? *(const uint2*)from : make_uint2(0, 0);
                } else {
                    columns[n][c] = load4(from, ranks[n] - k);
                }
            }
            z[n] = exists && updates[n].z != nullptr ? *(const uint2*)(updates[n].z + k) : make_uint2(0, 0);
        }
#pragma unroll
        for (int n = 0; n < N; ++n) {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const uint2 even = columns[n][2 * j], odd = columns[n][2 * j + 1];
                mma16(acc[n][j], even.x, odd.x, even.y, odd.y, z[n].x, z[n].y);
            }
        }
    }
}

// As above, for ranks that are multiples of 32: half as many loads, each of 16 bytes.
template <int N>
__device__ __forceinline__ void expand_wide(
    float (&acc)[N][4][4], const Update (&updates)[N], const int (&ranks)[N], int most) {
    const int q = threadIdx.x % 4;
#pragma unroll 1
    for (int k = 8 * q; k - 8 * q < most; k += 32) {
#pragma unroll
        for (int n = 0; n < N; ++n) {
            const bool exists = k < ranks[n];
            uint4 columns[8];
#pragma unroll
            for (int c = 0; c < 8; ++c) {
                columns[c] = exists ? *(const uint4*)(updates[n].b + c * ranks[n] + k) : zero16();
            }
            const uint4 z = exists && updates[n].z != nullptr ? *(const uint4*)(updates[n].z + k) : zero16();
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                mma32(acc[n][j], columns[2 * j], columns[2 * j + 1], z);
            }
        }
    }
}

// acc = B z for each update. Column 8 g + 2 j + i of row 2 q + half is acc[j][2 i + half].
template <int N>
__device__ __forceinline__ void expand(float (&acc)[N][4][4], const Update (&updates)[N]) {
    int ranks[N], most = 0;
    bool aligned = true, wide = true;
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
        for (int i = 0; i < 16; ++i) {
            acc[n][i / 4][i % 4] = 0.0f;
        }
        ranks[n] = updates[n].module == nullptr ? 0 : updates[n].module->rank;
        most = max(most, ranks[n]);
        aligned = aligned && ranks[n] % 4 == 0;
        wide = wide && ranks[n] % 32 == 0;
    }
    if (wide) {
        expand_wide<N>(acc, updates, ranks, most);
    } else if (aligned) {
        expand_ranks<N, true>(acc, updates, ranks, most);
    } else {
        expand_ranks<N, false>(acc, updates, ranks, most);
    }
}

// 8 outputs of a row: the product's, scaled, plus what the adapter adds. `output` counts over the
// group's outputs, `column` over the linear's own.
__device__ __forceinline__ void adapted(
    float (&out)[8], const uint4& product, const float (&acc)[4][4], int half, const Tile& tile,
    const AdapterModule* module, const Scales& scales, u64 row, u32 output, u32 column) {
    unpack8(product, out);
#if WEIGHT_BITS == 8
    const float row_scale = scales.rows[row];
    float output_scales[8];
    load8(scales.outputs + output, output_scales);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        out[i] *= row_scale * output_scales[i];
    }
#endif
    if (module == nullptr) {
        return;
    }
    const float scale = module->scale;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const float update = half == 0 ? acc[i / 2][2 * (i % 2)] : acc[i / 2][2 * (i % 2) + 1];
        out[i] += scale * update;
    }
    if (module->gain != 0) {
        float gain[8];
        load8((const float*)(tile.adapter + module->gain) + column, gain);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            out[i] *= gain[i];
        }
    }
}
