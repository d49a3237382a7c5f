// out = silu(gate) * up, with the adapters of both added first.

#define GROUPS 2
#define WARPS 4

extern "C" __global__ void __launch_bounds__(WARPS * 32, 4) silu_mul(
    const Step* step, const Tile* tiles, const u16* y, const u16* z, u32 z_stride, u16* out, u32 width, u32 layer) {
    const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const u32 columns = width / (32 * GROUPS);
    const u32 items = step->tiles * columns;
    const Range range = warp_share(items);
    for (u32 item = range.start; item < range.end; ++item) {
        const Tile tile = tiles[item / columns];
        const u32 column = item % columns * (32 * GROUPS);
        const AdapterModule* gate_module = module_of(tile, layer, 4);
        const AdapterModule* up_module = module_of(tile, layer, 5);
        float gate[GROUPS][4][4], up[GROUPS][4][4];
        expand<GROUPS>(gate, tile, gate_module, z, z_stride, column);
        expand<GROUPS>(up, tile, up_module, z, z_stride, column);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            if (g + 8 * half >= tile.rows) {
                continue;
            }
            const u64 r = tile.first_row + g + 8 * half;
#pragma unroll
            for (int group = 0; group < GROUPS; ++group) {
                const u32 c = column + 32 * group + 8 * q;
                const uint4 base_gate = *(const uint4*)(y + r * 2 * width + c);
                const uint4 base_up = *(const uint4*)(y + r * 2 * width + width + c);
                float a[8], b[8];
                adapted(a, base_gate, gate[group], half == 1, tile, gate_module, c);
                adapted(b, base_up, up[group], half == 1, tile, up_module, c);
#pragma unroll
                for (int i = 0; i < 8; ++i) {
                    a[i] = a[i] / (1.0f + __expf(-a[i])) * b[i];
                }
                *(uint4*)(out + r * width + c) = pack8(a);
            }
        }
    }
}
