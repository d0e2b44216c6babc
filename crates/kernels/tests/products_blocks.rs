//! The block formats: read as another implementation reads them, written so that they can be read back.

use omnidecode_kernels::dtype::quantize::quantize;
use omnidecode_kernels::dtype::{Dtype, dequantize};
use omnidecode_kernels::error::KernelError;
use omnidecode_kernels::matrix::Matrix;

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hexadecimal")).collect()
}

#[test]
fn values_are_those_of_the_gguf_package() {
    let mut seen = 0;
    for line in include_str!("data/blocks.txt").lines().filter(|line| !line.starts_with('#')) {
        let mut words = line.split(' ');
        let mut word = || words.next().expect("name, blocks, values");
        let name = word();
        let dtype = Dtype::ALL.into_iter().find(|d| d.to_string() == name).expect("a type");
        let (bytes, values) = (hex(word()), hex(word()));
        let expected: Vec<f32> = values.chunks(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let mut out = vec![f32::NAN; expected.len()];
        dequantize(dtype, &bytes, &mut out).expect("whole blocks");
        assert_eq!(out, expected, "{dtype}");
        let matrix = Matrix::pack(dtype, &bytes, 1, expected.len()).expect("a matrix");
        matrix.row(0, &mut out).expect("its row");
        assert_eq!(out, expected, "{dtype}, packed");
        seen += 1;
    }
    assert_eq!(seen, Dtype::ALL.len() - 1, "every type but F32");
}

#[test]
fn quantized_values_come_back_near() {
    let values: Vec<f32> = (0..1024).map(|i| ((i * 37 % 101) as f32 - 40.0) / 13.0).collect();
    for (dtype, most) in [
        (Dtype::F32, 0.0),
        (Dtype::F16, 0.002),
        (Dtype::Bf16, 0.02),
        (Dtype::Q8_0, 0.02),
        (Dtype::Q6K, 0.16),
        (Dtype::Q5_0, 0.32),
        (Dtype::Q5_1, 0.15),
        (Dtype::Q5K, 0.2),
        (Dtype::Q4_0, 0.65),
        (Dtype::Q4_1, 0.3),
        (Dtype::Q4K, 0.4),
    ] {
        let bytes = quantize(dtype, &values).expect("whole blocks");
        assert_eq!(Some(bytes.len()), dtype.bytes(values.len()));
        let mut out = vec![0.0; values.len()];
        dequantize(dtype, &bytes, &mut out).expect("whole blocks");
        let worst = out.iter().zip(&values).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst <= most, "{dtype}: {worst}");
        let zeros = quantize(dtype, &[0.0; 256]).expect("whole blocks");
        let mut out = vec![1.0; 256];
        dequantize(dtype, &zeros, &mut out).expect("whole blocks");
        assert_eq!(out, [0.0; 256], "{dtype}");
    }
}

#[test]
fn what_is_no_whole_number_of_blocks_is_refused() {
    assert!(matches!(quantize(Dtype::Q8_0, &[0.0; 33]), Err(KernelError::Block { .. })));
    assert!(matches!(dequantize(Dtype::Q4K, &[], &mut [0.0; 32]), Err(KernelError::Block { .. })));
    assert!(matches!(
        dequantize(Dtype::Q4_0, &[0; 17], &mut [0.0; 32]),
        Err(KernelError::ByteCount { expected: 18, found: 17, .. })
    ));
    assert_eq!(Dtype::from_ggml(10), Err(KernelError::UnknownType(10)));
    assert_eq!(Dtype::from_ggml(12), Ok(Dtype::Q4K));
}
