//! Products of every type on every tier of this machine, against a naive reference in f64.

use proptest::strategy::Strategy as _;

use omnidecode_kernels::activations::{Activations, Forms};
use omnidecode_kernels::dtype::quantize::quantize;
use omnidecode_kernels::dtype::{Dtype, dequantize};
use omnidecode_kernels::error::KernelError;
use omnidecode_kernels::matrix::Matrix;
use omnidecode_kernels::pool::Pool;
use omnidecode_kernels::product::{Job, Linear, product};
use omnidecode_kernels::tier::Tier;

/// Reproducible values of about unit variance, with an outlier now and then, as activations have them.
fn values(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..count).map(|i| (uniform() + uniform() + uniform()) * if i % 97 == 5 { 12.0 } else { 2.0 }).collect()
}

struct Case {
    matrix: Matrix,
    bytes: Vec<u8>,
    weights: Vec<f32>,
}

fn case(dtype: Dtype, n: usize, k: usize) -> Case {
    let bytes = quantize(dtype, &values(n * k, (n * 31 + k) as u64)).expect("whole blocks");
    let mut weights = vec![0.0; n * k];
    dequantize(dtype, &bytes, &mut weights).expect("valid blocks");
    Case { matrix: Matrix::pack(dtype, &bytes, n, k).expect("valid matrix"), bytes, weights }
}

/// The activations that a form stands for, by its definition.
fn seen(form: Forms, x: &[f32], k: usize) -> Vec<f64> {
    let row = |row: &[f32]| -> Vec<f64> {
        match form {
            Forms::INT8 => row
                .chunks(32)
                .flat_map(|group| {
                    let most = group.iter().fold(0.0f32, |most, x| most.max(x.abs()));
                    let (d, inverse) = if most > 0.0 { (most / 127.0, 127.0 / most) } else { (0.0, 0.0) };
                    group
                        .iter()
                        .map(move |x| f64::from(d) * f64::from((x * inverse).round_ties_even()))
                        .collect::<Vec<_>>()
                })
                .collect(),
            Forms::BF16 => row.iter().map(|x| half::bf16::from_f32(*x).to_f64()).collect(),
            _ => row.iter().map(|x| f64::from(*x)).collect(),
        }
    };
    x.chunks(k).flat_map(row).collect()
}

/// The distance between neighbours of value `j` in a form: twice what rounding to it may cost.
fn unit(form: Forms, x: &[f32], j: usize) -> f64 {
    match form {
        Forms::INT8 => {
            let group = &x[j / 32 * 32..x.len().min(j / 32 * 32 + 32)];
            f64::from(group.iter().fold(0.0f32, |most, x| most.max(x.abs()))) / 127.0
        }
        Forms::BF16 => f64::from(x[j].abs()) / 128.0,
        _ => 0.0,
    }
}

fn run(pool: &Pool, tier: Tier, matrix: &Matrix, x: &[f32]) -> Vec<f32> {
    let rows = x.len() / matrix.k();
    let mut acts = Activations::on(tier);
    acts.load(pool, x, rows, matrix.k(), matrix.form_on(tier)).expect("finite");
    let mut out = vec![f32::NAN; rows * matrix.n()];
    product(pool, &acts, &mut [Job::store(matrix, &mut out)]).expect("shapes fit");
    out
}

/// The smallest width, one that fills no whole step or an odd number of blocks, and a common one.
fn widths(dtype: Dtype) -> [usize; 3] {
    if dtype.is_quantized() { [dtype.block(), 3 * dtype.block(), 512] } else { [1, 35, 256] }
}

fn each(mut body: impl FnMut(Tier, Dtype)) {
    for tier in Tier::available() {
        for dtype in Dtype::ALL {
            body(tier, dtype);
        }
    }
}

#[test]
fn equal_the_reference() {
    let pool = Pool::new(2);
    each(|tier, dtype| {
        for k in widths(dtype) {
            for n in [1, 16, 37] {
                let Case { matrix, weights, .. } = case(dtype, n, k);
                for rows in [1, 2, 3, 4, 5, 6, 7, 8, 13, 40] {
                    let x = values(rows * k, rows as u64);
                    let a = seen(matrix.form_on(tier), &x, k);
                    let out = run(&pool, tier, &matrix, &x);
                    for (index, y) in out.iter().enumerate() {
                        let (row, column) = (index / n, index % n);
                        let (mut sum, mut exact, mut size, mut rounded) = (0.0, 0.0, 0.0, 0.0);
                        for j in 0..k {
                            let w = f64::from(weights[column * k + j]);
                            sum += w * a[row * k + j];
                            exact += w * f64::from(x[row * k + j]);
                            size += (w * f64::from(x[row * k + j])).abs();
                            rounded += w.abs() * unit(matrix.form_on(tier), &x[row * k..][..k], j) / 2.0;
                        }
                        let what = format!("{tier} {dtype} {n}×{k}, {rows} rows, [{row}, {column}]");
                        // Rounding of f32 sums; minima are subtracted from sums that are larger than the result.
                        let error = (f64::from(*y) - sum).abs();
                        assert!(error <= 4e-6 * size + 1e-6, "{what}: {y} for {sum}, of {size}");
                        let loose = (f64::from(*y) - exact).abs();
                        assert!(
                            loose <= rounded + 4e-6 * size + 1e-6,
                            "{what}: {y} for {exact} before rounding the activations"
                        );
                    }
                }
            }
        }
    });
}

#[test]
fn rows_do_not_depend_on_their_company() {
    let (one, three) = (Pool::new(1), Pool::new(3));
    each(|tier, dtype| {
        let (n, k) = (77, if dtype.is_quantized() { 512 } else { 83 });
        let Case { matrix, .. } = case(dtype, n, k);
        let x = values(512 * k, 7);
        let all = run(&one, tier, &matrix, &x);
        let bits = |y: &[f32]| y.iter().map(|y| y.to_bits()).collect::<Vec<_>>();
        for row in (0..512).step_by(5) {
            let alone = run(&one, tier, &matrix, &x[row * k..][..k]);
            assert_eq!(bits(&alone), bits(&all[row * n..][..n]), "{tier} {dtype}: row {row} alone");
        }
        for rows in (1..=40).chain([127, 256]) {
            for first in [0, 1, 17] {
                let some = run(&three, tier, &matrix, &x[first * k..][..rows * k]);
                assert_eq!(
                    bits(&some),
                    bits(&all[first * n..][..rows * n]),
                    "{tier} {dtype}: {rows} rows from {first}"
                );
            }
        }
        let mut acts = Activations::on(tier);
        acts.load(&three, &x, 512, k, matrix.form_on(tier)).expect("finite");
        let picked = [500, 3, 3, 77, 0, 511, 250];
        let mut out = vec![0.0; picked.len() * n];
        product(&three, &acts, &mut [Job::store(&matrix, &mut out).of_rows(&picked)]).expect("shapes fit");
        for (row, y) in picked.into_iter().zip(out.chunks(n)) {
            assert_eq!(bits(y), bits(&all[row as usize * n..][..n]), "{tier} {dtype}: row {row} picked");
        }
    });
}

#[test]
fn packing_keeps_every_row_and_adds_little() {
    for dtype in Dtype::ALL {
        for k in widths(dtype).into_iter().chain([768]) {
            for n in [1, 16, 35] {
                let Case { matrix, bytes, weights } = case(dtype, n, k);
                for (row, expected) in weights.chunks(k).enumerate() {
                    let mut out = vec![f32::NAN; k];
                    matrix.row(row, &mut out).expect("a row");
                    assert_eq!(out, expected, "{dtype} {n}×{k}, row {row}");
                }
                assert!(matrix.row(n, &mut vec![0.0; k]).is_err());
                assert!(matrix.row(0, &mut vec![0.0; k + 1]).is_err());
                let packed = Matrix::pack_with(&Pool::new(3), dtype, &bytes, n, k).expect("valid");
                assert_eq!(packed.bytes(), matrix.bytes());
                if k == 768 && n == 16 {
                    let growth = matrix.bytes() as f64 / bytes.len() as f64;
                    assert!(growth < 1.03, "{dtype} grows by {growth}");
                }
            }
        }
    }
}

#[test]
fn hundreds_of_rows_equal_the_reference_at_a_common_width() {
    let pool = Pool::new(2);
    let (n, k, rows) = (24, 2048, 512);
    each(|tier, dtype| {
        let Case { matrix, weights, .. } = case(dtype, n, k);
        let x = values(rows * k, 5);
        let a = seen(matrix.form_on(tier), &x, k);
        let out = run(&pool, tier, &matrix, &x);
        for row in (0..rows).step_by(37) {
            for column in 0..n {
                let terms = (0..k).map(|j| f64::from(weights[column * k + j]) * a[row * k + j]);
                let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), t| (sum + t, size + t.abs()));
                let y = f64::from(out[row * n + column]);
                assert!((y - sum).abs() <= 4e-6 * size, "{tier} {dtype} [{row}, {column}]: {y} for {sum}, of {size}");
            }
        }
    });
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(300))]

    /// Any shape and any number of bytes is a matrix or an error; any bytes of the right number are a matrix that gives
    /// its rows back.
    #[test]
    fn hostile_shapes_and_bytes_do_no_harm(
        dtype in proptest::sample::select(&Dtype::ALL[..]),
        n in 0usize..40,
        blocks in 0usize..4,
        crooked in 0usize..300,
        cut in 0usize..3,
        seed: u64,
    ) {
        let bytes_of = |k: usize| dtype.bytes(k).and_then(|row| row.checked_mul(n)).unwrap_or(0);
        proptest::prop_assert_eq!(
            Matrix::pack(dtype, &vec![0; bytes_of(crooked)], n, crooked).is_ok(),
            n > 0 && crooked > 0 && crooked % dtype.block() == 0
        );
        let k = blocks * dtype.block();
        let mut state = seed | 1;
        let bytes: Vec<u8> = (0..bytes_of(k)).map(|_| { state = state.wrapping_mul(0xD129_0429_2D4C_6A35).wrapping_add(7); (state >> 56) as u8 }).collect();
        if cut > 0 && !bytes.is_empty() {
            proptest::prop_assert!(Matrix::pack(dtype, &bytes[..bytes.len() - cut.min(bytes.len())], n, k).is_err());
        }
        if let Ok(matrix) = Matrix::pack(dtype, &bytes, n, k) {
            let mut all = vec![0.0; n * k];
            dequantize(dtype, &bytes, &mut all).expect("whole blocks");
            let mut out = vec![0.0; k];
            for (row, expected) in all.chunks(k).enumerate() {
                matrix.row(row, &mut out).expect("a row");
                proptest::prop_assert!(out.iter().zip(expected).all(|(a, b)| a.to_bits() == b.to_bits()), "{} row {}", dtype, row);
            }
            // NaN scales make NaN results, and no more.
            run(&Pool::new(1), Tier::best(), &matrix, &vec![1.0; 3 * k]);
        }
    }

    #[test]
    fn impossible_sizes_are_refused(
        dtype in proptest::sample::select(&Dtype::ALL[..]),
        n in usize::MAX / 64..usize::MAX,
        k in (1usize..1000).prop_map(|k| k * 256),
    ) {
        proptest::prop_assert!(Matrix::pack(dtype, &[0; 64], n, k).is_err());
    }
}

#[test]
fn jobs_add_scale_activate_and_gate() {
    use omnidecode_kernels::act::{self, Act};
    let pool = Pool::new(2);
    let (k, n, rows) = (256, 50, 13);
    let x = values(rows * k, 3);
    let bias: Vec<f32> = values(n, 4);
    each(|tier, dtype| {
        let Case { matrix, .. } = case(dtype, n, k);
        let Case { matrix: up, .. } = case(Dtype::Q8_0, n, k);
        let mut acts = Activations::on(tier);
        acts.load(&pool, &x, rows, k, matrix.form_on(tier) | up.form_on(tier)).expect("finite");
        let plain = run(&pool, tier, &matrix, &x);
        let upper = run(&pool, tier, &up, &x);
        let stride = n + 3;
        let (mut added, mut gated, mut activated) =
            (vec![2.0; rows * stride], vec![0.0; rows * n], vec![0.0; rows * n]);
        product(
            &pool,
            &acts,
            &mut [
                Job::add(Linear { weights: &matrix, bias: Some(&bias) }, 0.5, &mut added).stride(stride),
                Job::gated(&matrix, &up, Act::Silu, &mut gated),
                Job::activated(&matrix, Act::Silu, &mut activated),
            ],
        )
        .expect("shapes fit");
        let mut silu = plain.clone();
        act::apply(Act::Silu, &mut silu);
        assert_eq!(activated, silu, "{tier} {dtype}");
        let mut product_of = vec![0.0; rows * n];
        act::gate(Act::Silu, &plain, &upper, &mut product_of);
        assert_eq!(gated, product_of, "{tier} {dtype}");
        for (row, line) in added.chunks(stride).enumerate() {
            for column in 0..n {
                let y = 2.0 + 0.5 * (plain[row * n + column] + bias[column]);
                assert!(
                    (line[column] - y).abs() <= 1e-6 * y.abs().max(1.0),
                    "{tier} {dtype}: {} for {y}",
                    line[column]
                );
            }
            assert_eq!(&line[n..], [2.0; 3], "{tier} {dtype}: written beyond the row");
        }
    });
}

#[test]
fn outputs_that_are_loaded_at_once_are_those_that_are_loaded_later() {
    use omnidecode_kernels::act::Act;
    let pool = Pool::new(3);
    let (k, rows) = (64, 11);
    let mut x = values(rows * k, 8);
    for tier in Tier::available() {
        for (next, n) in [(Dtype::Q4_1, 96), (Dtype::Q8_0, 160), (Dtype::F32, 50), (Dtype::Bf16, 34), (Dtype::F16, 16)]
        {
            let [Case { matrix: gate, .. }, Case { matrix: up, .. }] =
                [Dtype::Q5_1, Dtype::Q8_0].map(|d| case(d, n, k));
            let Case { matrix: down, .. } = case(next, 20, n);
            let mut acts = Activations::on(tier);
            acts.load(&pool, &x, rows, k, Forms::INT8).expect("finite");
            let form = down.form_on(tier);
            let finish = |acts: &Activations| {
                let mut y = vec![0.0; acts.rows() * 20];
                product(&pool, acts, &mut [Job::store(&down, &mut y)]).expect("shapes fit");
                y
            };
            let mut later = Activations::on(tier);
            for some in [None, Some(&[7u32, 0, 3][..])] {
                let count = some.map_or(rows, <[u32]>::len);
                fn picked<'a>(job: Job<'a>, some: Option<&'a [u32]>) -> Job<'a> {
                    if let Some(rows) = some { job.of_rows(rows) } else { job }
                }
                let (mut lifted, mut activated) = (vec![0.0; count * n], vec![0.0; count * n]);
                let jobs = [
                    picked(Job::gated(&gate, &up, Act::Silu, &mut lifted), some),
                    picked(Job::activated(&up, Act::Gelu, &mut activated), some),
                ];
                product(&pool, &acts, &mut { jobs }).expect("shapes fit");
                let (mut one, mut two) = (Activations::on(tier), Activations::on(tier));
                let (to_one, to_two) = (one.begin(count, n, form), two.begin(count, n, form));
                let jobs = [
                    picked(Job::gated(&gate, &up, Act::Silu, &mut []).load(&to_one), some),
                    picked(Job::activated(&up, Act::Gelu, &mut []).load(&to_two), some),
                ];
                product(&pool, &acts, &mut { jobs }).expect("shapes fit");
                assert_eq!((to_one.finish(), to_two.finish()), (Ok(()), Ok(())));
                for (values, loaded) in [(&lifted, &one), (&activated, &two)] {
                    later.load(&pool, values, count, n, form).expect("finite");
                    assert_eq!(finish(&later), finish(loaded), "{tier} {next}");
                }
            }
            // A row that overflows is told of, and spoils no other.
            x[4 * k..5 * k].fill(f32::MAX / 1e3);
            acts.load(&pool, &x, rows, k, Forms::INT8).expect("finite");
            let mut loaded = Activations::on(tier);
            let to = loaded.begin(rows, n, form);
            let mut jobs = [Job::gated(&up, &up, Act::Silu, &mut []).load(&to)];
            product(&pool, &acts, &mut jobs).expect("shapes fit");
            assert_eq!(to.finish().expect_err("an overflow").row, 4);
            let x = &mut x[4 * k..5 * k];
            x.iter_mut().enumerate().for_each(|(i, x)| *x = i as f32 / 64.0);
        }
    }
}

#[test]
#[should_panic(expected = "written twice")]
fn activations_are_not_loaded_by_two_jobs() {
    let pool = Pool::new(2);
    let Case { matrix, .. } = case(Dtype::F32, 32, 32);
    let (mut acts, mut loaded) = (Activations::new(), Activations::new());
    acts.load(&pool, &[1.0; 64], 2, 32, Forms::F32).expect("finite");
    let to = loaded.begin(2, 32, Forms::F32);
    let job = || Job::store(&matrix, &mut []).load(&to);
    let _ = product(&pool, &acts, &mut [job(), job()]);
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_written() {
    let pool = Pool::new(2);
    let Case { matrix, bytes, .. } = case(Dtype::Q8_0, 20, 64);
    assert_eq!(
        Matrix::pack(Dtype::Q8_0, &bytes[1..], 20, 64).unwrap_err(),
        KernelError::ByteCount { dtype: Dtype::Q8_0, n: 20, k: 64, expected: bytes.len(), found: bytes.len() - 1 }
    );
    assert_eq!(
        Matrix::pack(Dtype::Q4K, &[], 1, 64).unwrap_err(),
        KernelError::Block { dtype: Dtype::Q4K, block: 256, k: 64 }
    );
    assert!(matches!(Matrix::pack(Dtype::F32, &[], usize::MAX, 8), Err(KernelError::TooLarge { .. })));
    assert!(matches!(Matrix::pack(Dtype::F32, &[], 0, 8), Err(KernelError::Shape { .. })));
    let mut acts = Activations::new();
    let mut out = [7.0; 40];
    acts.load(&pool, &[1.0; 128], 2, 64, Forms::F32).expect("finite");
    assert_eq!(product(&pool, &acts, &mut [Job::store(&matrix, &mut out)]), Err(KernelError::Form("INT8")));
    acts.load(&pool, &[1.0; 192], 2, 96, Forms::INT8).expect("finite");
    assert!(matches!(product(&pool, &acts, &mut [Job::store(&matrix, &mut out)]), Err(KernelError::Shape { .. })));
    acts.load(&pool, &[1.0; 192], 3, 64, Forms::INT8).expect("finite");
    assert!(matches!(product(&pool, &acts, &mut [Job::store(&matrix, &mut out)]), Err(KernelError::Length { .. })));
    let rows = [0, 3];
    let job = Job::store(&matrix, &mut out).of_rows(&rows);
    assert_eq!(product(&pool, &acts, &mut [job]), Err(KernelError::Row { row: 3, rows: 3 }));
    let job = Job::store(&matrix, &mut out).of_rows(&rows[..1]).stride(19);
    assert!(matches!(product(&pool, &acts, &mut [job]), Err(KernelError::Length { .. })));
    let short = Linear { weights: &matrix, bias: Some(&[0.0; 19]) };
    assert!(matches!(
        product(&pool, &acts, &mut [Job::store(short, &mut out).of_rows(&rows[..1])]),
        Err(KernelError::Shape { .. })
    ));
    assert_eq!(out, [7.0; 40]);
    assert_eq!(product(&pool, &acts, &mut [Job::store(&matrix, &mut out).of_rows(&[])]), Ok(()));
    assert_eq!(out, [7.0; 40]);
}
