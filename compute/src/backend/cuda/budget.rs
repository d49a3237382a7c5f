//! How many rows a step should have, from what steps of each size were measured to take.

/// Milliseconds that the longest step may take: it is the longest gap between a request's tokens
/// while prompts are computed beside it.
pub const LONGEST_STEP: f32 = 15.0;
/// The part of a step that its products take, with attention and adapters beside them.
const PRODUCTS_SHARE: f32 = 0.6;

/// Rows of the step that costs least a row, of those whose products leave it within
/// [`LONGEST_STEP`]; the smallest when none does. `times`: rows, and milliseconds of the products.
pub fn best_rows(times: &[(u32, f32)]) -> u32 {
    let within = times.iter().filter(|(_, time)| *time <= LONGEST_STEP * PRODUCTS_SHARE);
    let cost = |&(rows, time): &(u32, f32)| time / rows as f32;
    let best = within.min_by(|a, b| cost(a).total_cmp(&cost(b)));
    best.or(times.first()).map_or(1, |(rows, _)| *rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cheapest_row_within_the_bound_decides() {
        // Llama-3.1-8B on an H100: 384 rows are cheaper each, and too long.
        let times = [(32, 5.8), (128, 6.2), (256, 7.3), (320, 8.3), (384, 9.8), (512, 11.4)];
        assert_eq!(best_rows(&times), 320);
        // A bad pick of the library is avoided.
        assert_eq!(best_rows(&[(256, 7.3), (288, 8.9)]), 256);
    }

    #[test]
    fn a_device_that_is_too_slow_for_the_bound_gets_the_smallest_step() {
        assert_eq!(best_rows(&[(16, 40.0), (64, 60.0)]), 16);
        assert_eq!(best_rows(&[]), 1);
    }
}
