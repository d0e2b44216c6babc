use super::*;

#[test]
fn codes_scales_and_sums_are_what_the_form_says_on_every_tier() {
    let x: Vec<f32> = (0..96).map(|i| ((i * 37 % 64) as f32 - 31.0) * if i < 64 { 0.01 } else { 0.0 }).collect();
    let mut reference = None;
    for tier in Tier::available() {
        let mut acts = Activations::on(tier);
        assert!(acts.begin(1, 96, Forms::INT8).set(0, &x));
        let records = acts.int8[..3 * RECORD].to_vec();
        for (group, record) in records.chunks(RECORD).enumerate() {
            let codes: Vec<i32> =
                record[..8].iter().flat_map(|w| w.to_ne_bytes()).map(|b| i32::from(b as i8)).collect();
            let d = f32::from_bits(record[8]);
            for (code, x) in codes.iter().zip(&x[group * 32..]) {
                assert!((*code as f32 * d - x).abs() <= d / 2.0 * 1.0001, "{code} · {d} for {x}");
            }
            let sum: i32 = codes.iter().sum();
            assert_eq!(f32::from_bits(record[9]), d * sum as f32);
            assert_eq!(record[10] as i32, -128 * sum);
            assert_eq!(record[11] as i32, -128 * codes[..16].iter().sum::<i32>());
            assert_eq!(record[12] as i32, -128 * codes[16..].iter().sum::<i32>());
        }
        assert_eq!(*reference.get_or_insert(records.clone()), records, "{tier}");
    }
}

#[test]
fn what_is_not_finite_is_found_in_every_form_and_place() {
    let pool = Pool::new(2);
    let mut acts = Activations::new();
    for forms in [Forms::INT8, Forms::BF16, Forms::F32, Forms::INT8 | Forms::F32] {
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 31, 32, 63] {
                let mut x = vec![1.0; 5 * 64];
                x[3 * 64 + at] = bad;
                x[4 * 64] = bad;
                assert_eq!(acts.load(&pool, &x, 5, 64, forms), Err(NotFinite { row: 3 }));
            }
        }
        assert_eq!(acts.load(&pool, &[f32::MAX; 64], 1, 64, forms), Ok(()));
        assert_eq!(acts.load(&pool, &[f32::MIN_POSITIVE; 64], 1, 64, forms), Ok(()));
    }
}

#[test]
#[should_panic(expected = "written twice")]
fn a_row_is_written_once() {
    let mut acts = Activations::new();
    let writer = acts.begin(2, 32, Forms::F32);
    writer.set(1, &[0.0; 32]);
    writer.set(1, &[0.0; 32]);
}
