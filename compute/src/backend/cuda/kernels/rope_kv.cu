// Adds the adapters to q, k and v, rotates q and k, and stores: q for the attention, k and v in
// their KV blocks.
//
// KV: [block][layer][key, value][kv head]; a key as [token][HEAD_DIM], a value transposed as
// [HEAD_DIM][token], so that the attention reads both in contiguous pieces.

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

extern "C" __global__ void __launch_bounds__(EXPAND_WARPS * 32, 4) rope_kv(
    const Step* step, const Row* rows, const Tile* tiles, const u16* y, const u16* z, u32 z_stride,
    Scales scales, const float* cosines, const float* sines, u16* queries, u16* kv, u32 heads,
    u32 kv_heads, u32 layer, u32 layers) {
    const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    wait_for_previous();
    let_next_start();
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
                }
                if (linear < 2) {
                    const u64 angle = (u64)row[half].position * (HEAD_DIM / 2);
                    rotate(values, cosines + angle, sines + angle);
                }
                if (place >= tile.rows) {
                    continue;
                }
                u16* const page = kv
                    + ((((u64)row[half].block * layers + layer) * 2 + (linear == 2)) * kv_heads + own) * BLOCK_TOKENS * HEAD_DIM;
                const u32 token = row[half].position % BLOCK_TOKENS;
                u16* const to = linear == 0 ? queries + (r * heads + own) * HEAD_DIM : page + token * HEAD_DIM;
#pragma unroll
                for (int part = 0; part < PARTS; ++part) {
                    const u32 column = part * COLUMNS + 8 * g;
                    if (linear < 2) {
                        *(uint4*)(to + column) = pack8(values[part]);
                        continue;
                    }
#pragma unroll
                    for (int i = 0; i < 8; ++i) {
                        page[(column + i) * BLOCK_TOKENS + token] = to_bf16(values[part][i]);
                    }
                }
            }
        }
    }
}
