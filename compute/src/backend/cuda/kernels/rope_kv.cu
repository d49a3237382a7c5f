// Adds the adapters and biases to q, k and v, normalises the heads of q and k where the model does,
// rotates them, and stores: q for the attention, k and v in their KV blocks.

#define COLUMNS 64
#define PARTS (HEAD_DIM / COLUMNS)

// Rotates the pairs (i, i + HEAD_DIM / 2) of a head. A lane holds 8 columns from 8 g of each part.
__device__ __forceinline__ void rotate(float (&values)[PARTS][8], const float* cosines, const float* sines) {
    const int g = threadIdx.x % 32 / 4;
    const u32 first = 8 * g % (HEAD_DIM / 2);
    float c[8], s[8];
#pragma unroll
    for (int i = 0; i < 8; i += 4) {
        *(float4*)(c + i) = *(const float4*)(cosines + first + i);
        *(float4*)(s + i) = *(const float4*)(sines + first + i);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#if HEAD_DIM == 128
        const float a = values[0][i], b = values[1][i];
        values[0][i] = a * c[i] - b * s[i];
        values[1][i] = b * c[i] + a * s[i];
#else
        // The other of the pair is 32 columns, that is 4 in g, away.
        const float other = __shfl_xor_sync(0xffffffffu, values[0][i], 16);
        values[0][i] = values[0][i] * c[i] + (g < 4 ? -other : other) * s[i];
#endif
    }
}

// What a family has beside the products; null: it has not.
struct Heads {
    const float* biases;               // of q, k and v
    const float *query_norm, *key_norm; // HEAD_DIM
    float eps;
    u32 unused;
};

__device__ __forceinline__ void normalise(float (&values)[PARTS][8], const float* norm, float eps) {
    const int g = threadIdx.x % 32 / 4;
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < PARTS * 8; ++i) {
        sum += values[i / 8][i % 8] * values[i / 8][i % 8];
    }
    const float scale = rsqrtf(over_g<false>(sum) / HEAD_DIM + eps);
#pragma unroll
    for (int i = 0; i < PARTS * 8; ++i) {
        values[i / 8][i % 8] *= scale * norm[i / 8 * COLUMNS + 8 * g + i % 8];
    }
}

// Where a head's keys or values of a block lie, and the scales.
struct Place {
    kv_t* head;
    kv_t* scales;
    u32 token; // of the block
};

__device__ __forceinline__ void store_key(const Place& at, const float (&values)[PARTS][8]) {
    const int g = threadIdx.x % 32 / 4;
#pragma unroll
    for (int part = 0; part < PARTS; ++part) {
        kv_t* const to = at.head + at.token * HEAD_DIM + part * COLUMNS + 8 * g;
        const float(&v)[8] = values[part];
#if KV_BITS == 8
        *(uint2*)to = to_e4m3x8(v, 1.0f);
#else
        *(uint4*)to = pack8(v);
#endif
    }
}

__device__ __forceinline__ void store_value(const Place& at, const float (&values)[PARTS][8]) {
    const int g = threadIdx.x % 32 / 4;
#pragma unroll
    for (int part = 0; part < PARTS; ++part) {
        kv_t* const to = at.head + (part * COLUMNS + 8 * g) * BLOCK_TOKENS + at.token;
        const float(&v)[8] = values[part];
#if KV_BITS == 8
#pragma unroll
        for (int i = 0; i < 8; i += 4) {
            const u32 four = to_e4m3x4(v[i], v[i + 1], v[i + 2], v[i + 3]);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                to[(i + j) * BLOCK_TOKENS] = (kv_t)(four >> 8 * j);
            }
        }
#else
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            to[i * BLOCK_TOKENS] = to_bf16(v[i]);
        }
#endif
    }
}

// The largest value of the row's head becomes at most 256. Gives the scale as it is kept.
__device__ __forceinline__ u32 scale_head(float (&values)[PARTS][8]) {
    float most = 0.0f;
#pragma unroll
    for (int i = 0; i < PARTS * 8; ++i) {
        most = fmaxf(most, fabsf(values[i / 8][i % 8]));
    }
    const int exponent = (int)(__float_as_uint(over_g<true>(most)) >> 23);
    const u32 kept = min(max(exponent - 127 - 7 + 15, 1), 30);
    const float factor = __uint_as_float((142 - kept) << 23);
#pragma unroll
    for (int i = 0; i < PARTS * 8; ++i) {
        values[i / 8][i % 8] *= factor;
    }
    return kept;
}

extern "C" __global__ void __launch_bounds__(EXPAND_WARPS * 32, 4) rope_kv(
    const Step* step, const Row* rows, const Tile* tiles, const u16* y, const u16* z, u32 z_stride,
    Scales scales, Heads family, const float* cosines, const float* sines, u16* queries, kv_t* kv, u32 heads,
    u32 kv_heads, u32 layer, u32 layers) {
    const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    let_next_start();
    wait_for_previous();
    const u32 all_heads = heads + 2 * kv_heads;
    for (Share share = share_of(step->tiles, all_heads); share.take();) {
        const Tile tile = tiles[share.tile];
        const u32 head = share.column;
        const u32 linear = head < heads ? 0 : head < heads + kv_heads ? 1 : 2;
        const u32 own = head - (linear == 0 ? 0 : linear == 1 ? heads : heads + kv_heads);
        const AdapterModule* module = module_of(tile, layer, linear);
#pragma unroll 1
        for (u32 first = 0; first < tile.rows; first += 8) {
            Row row[2];
            uint4 product[2][PARTS];
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                // A row that does not exist: the last one's place is read instead.
                const u64 r = tile.first_row + min(first + 2 * q + half, tile.rows - 1);
                row[half] = rows[r];
#pragma unroll
                for (int part = 0; part < PARTS; ++part) {
                    const u32 output = head * HEAD_DIM + part * COLUMNS + 8 * g;
                    product[half][part] = *(const uint4*)(y + r * all_heads * HEAD_DIM + output);
                }
            }
            Update updates[PARTS];
#pragma unroll
            for (int part = 0; part < PARTS; ++part) {
                updates[part] = update_of(tile, module, own * HEAD_DIM + part * COLUMNS, z, z_stride, first);
            }
            float acc[PARTS][4][4];
            expand<PARTS>(acc, updates);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                // All lanes go on: the rotation may need those of rows that do not exist.
                const u32 place = first + 2 * q + half;
                const u64 r = tile.first_row + min(place, tile.rows - 1);
                float values[PARTS][8];
#pragma unroll
                for (int part = 0; part < PARTS; ++part) {
                    const u32 column = part * COLUMNS + 8 * g, output = head * HEAD_DIM + column;
                    adapted(
                        values[part], product[half][part], acc[part], half, tile, module, scales, r, output,
                        own * HEAD_DIM + column);
#pragma unroll
                    for (int i = 0; family.biases != nullptr && i < 8; ++i) {
                        values[part][i] += family.biases[output + i];
                    }
                }
                if (linear < 2 && family.query_norm != nullptr) {
                    normalise(values, linear == 0 ? family.query_norm : family.key_norm, family.eps);
                }
                if (linear < 2) {
                    const u64 angle = (u64)row[half].position * (HEAD_DIM / 2);
                    rotate(values, cosines + angle, sines + angle);
                }
                const u64 page = kv_page(kv_heads);
                kv_t* const half_page = kv + (((u64)row[half].block * layers + layer) * 2 + (linear == 2)) * page;
                const Place at = {
                    half_page + own * KV_HEAD, half_page + kv_heads * KV_HEAD + own * BLOCK_TOKENS,
                    row[half].position % BLOCK_TOKENS};
#if KV_BITS == 8
                const u32 scale = linear == 0 ? 0 : scale_head(values);
                if (linear > 0 && place < tile.rows && g == 0) {
                    at.scales[at.token] = (kv_t)scale;
                }
#endif
                if (place >= tile.rows) {
                    continue;
                }
                if (linear == 1) {
                    store_key(at, values);
                } else if (linear == 2) {
                    store_value(at, values);
                } else {
#pragma unroll
                    for (int part = 0; part < PARTS; ++part) {
                        const float(&v)[8] = values[part];
                        *(uint4*)(queries + (r * heads + own) * HEAD_DIM + part * COLUMNS + 8 * g) = make_uint4(
                            pack_factors(v[0], v[1]), pack_factors(v[2], v[3]), pack_factors(v[4], v[5]),
                            pack_factors(v[6], v[7]));
                    }
                }
            }
        }
    }
}
