// Adds the adapters to q, k and v, rotates q and k, and stores: q for the attention, k and v in
// their KV blocks.
//
// KV: [block][layer][key, value][kv head]; a key as [token][HEAD_DIM], a value transposed as
// [HEAD_DIM][token], so that the attention reads both in contiguous pieces.

#define GROUPS (HEAD_DIM / 32)
#define WARPS 4

extern "C" __global__ void __launch_bounds__(WARPS * 32, 4) rope_kv(
    const Step* step, const Row* rows, const Tile* tiles, const u16* y, const u16* z, u32 z_stride,
    const float* cosines, const float* sines, u16* queries, u16* kv, u32 heads, u32 kv_heads,
    u32 layer, u32 layers) {
    const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const u32 all_heads = heads + 2 * kv_heads;
    const u32 items = step->tiles * all_heads;
    const Range range = warp_share(items);
    for (u32 item = range.start; item < range.end; ++item) {
        const Tile tile = tiles[item / all_heads];
        const u32 head = item % all_heads;
        const u32 linear = head < heads ? 0 : head < heads + kv_heads ? 1 : 2;
        const u32 own = head - (linear == 0 ? 0 : linear == 1 ? heads : heads + kv_heads);
        const AdapterModule* module = module_of(tile, layer, linear);
        float acc[GROUPS][4][4];
        expand<GROUPS>(acc, tile, module, z, z_stride, own * HEAD_DIM);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            if (g + 8 * half >= tile.rows) {
                continue;
            }
            const u32 r = tile.first_row + g + 8 * half;
            const Row row = rows[r];
            float values[GROUPS][8];
#pragma unroll
            for (int group = 0; group < GROUPS; ++group) {
                const u32 column = 32 * group + 8 * q;
                const uint4 base = *(const uint4*)(y + ((u64)r * all_heads + head) * HEAD_DIM + column);
                adapted(values[group], base, acc[group], half == 1, tile, module, own * HEAD_DIM + column);
            }
            if (linear < 2) {
                const u64 angle = (u64)row.position * (HEAD_DIM / 2);
#pragma unroll
                for (int group = 0; group < GROUPS / 2; ++group) {
#pragma unroll
                    for (int i = 0; i < 8; ++i) {
                        const u32 column = 32 * group + 8 * q + i;
                        const float c = cosines[angle + column], s = sines[angle + column];
                        const float a = values[group][i], b = values[group + GROUPS / 2][i];
                        values[group][i] = a * c - b * s;
                        values[group + GROUPS / 2][i] = b * c + a * s;
                    }
                }
            }
            u16* const page = kv
                + ((((u64)row.block * layers + layer) * 2 + (linear == 2)) * kv_heads + own) * BLOCK_TOKENS * HEAD_DIM;
            const u32 token = row.position % BLOCK_TOKENS;
#pragma unroll
            for (int group = 0; group < GROUPS; ++group) {
                const u32 column = 32 * group + 8 * q;
                if (linear == 0) {
                    *(uint4*)(queries + ((u64)r * heads + own) * HEAD_DIM + column) = pack8(values[group]);
                } else if (linear == 1) {
                    *(uint4*)(page + token * HEAD_DIM + column) = pack8(values[group]);
                } else {
#pragma unroll
                    for (int i = 0; i < 8; ++i) {
                        page[(column + i) * BLOCK_TOKENS + token] = to_bf16(values[group][i]);
                    }
                }
            }
        }
    }
}
