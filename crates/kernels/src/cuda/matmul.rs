//! Products of many rows by cuBLASLt, for the mode that gives up row-invariance: which algorithm runs, and so in which order a
//! row is summed, depends on how many rows there are.
//!
//! The library thinks in columns. Our `[n, k]` weights are its `k x n` matrix, to be transposed; our `[rows, k]`
//! activations are its `k x rows`; what it writes as `n x rows` is our `[rows, n]`.
use super::DeviceError;
use super::args::MatmulArgs;
use super::library::{Algorithm, CublasLt, Handle};
use std::collections::HashMap;
use std::ffi::{c_int, c_void};

/// Bytes that an algorithm may use beside its operands.
pub(super) const WORKSPACE: usize = 32 << 20;

// As cublasLt.h and library_types.h number them.
const COMPUTE_32F: c_int = 68;
const R_32F: c_int = 0;
const R_16BF: c_int = 14;
const TRANSA: c_int = 3;
const TRANSB: c_int = 4;
const OP_N: i32 = 0;
const OP_T: i32 = 1;
const MAX_WORKSPACE_BYTES: c_int = 1;

/// A matrix as the library sees it: number format, rows, columns, numbers from column to column.
type Matrix = (c_int, u64, u64, i64);
/// Weights, activations, result.
fn matrices(args: &MatmulArgs) -> [Matrix; 3] {
    let (n, k, rows) = (u64::from(args.n), u64::from(args.k), u64::from(args.rows));
    [(R_16BF, k, n, k as i64), (R_16BF, k, rows, k as i64), (R_32F, n, rows, n as i64)]
}

/// A product that was described and has an algorithm.
struct Shape {
    desc: Handle,
    layouts: [Handle; 3],
    algorithm: [u64; 8],
}

/// The open library.
pub(super) struct Matmul {
    api: &'static CublasLt,
    handle: Handle,
    shapes: HashMap<[u32; 3], Shape>,
}

fn check(call: &'static str, code: c_int) -> Result<(), DeviceError> {
    match code {
        0 => Ok(()),
        _ => Err(DeviceError::Driver { call, message: format!("cuBLAS status {code}") }),
    }
}

/// Name and version; needs no device.
pub(super) fn version(api: &CublasLt) -> String {
    let number = |which| {
        let mut number = 0;
        // SAFETY: writes one number.
        unsafe { (api.property)(which, &raw mut number) };
        number
    };
    format!("cuBLASLt {}.{}.{}", number(0), number(1), number(2))
}

impl Matmul {
    /// Make a handle; on a GPU its context must be current.
    pub fn open(api: &'static CublasLt) -> Result<Matmul, DeviceError> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes one handle.
        check("cublasLtCreate", unsafe { (api.create)(&raw mut handle) })?;
        Ok(Matmul { api, handle, shapes: HashMap::new() })
    }

    /// For people.
    pub fn version(&self) -> String {
        version(self.api)
    }

    /// Enqueue a product. Nothing is allocated: a capture may be under way if this shape ran before.
    pub fn run(&mut self, args: &MatmulArgs, workspace: u64, stream: Handle) -> Result<(), DeviceError> {
        let key = [args.n, args.k, args.rows];
        if !self.shapes.contains_key(&key) {
            let shape = self.describe(args)?;
            self.shapes.insert(key, shape);
        }
        let Shape { desc, layouts: [w, x, out], algorithm } = &self.shapes[&key];
        let (one, zero) = (1.0f32, 0.0f32);
        // SAFETY: device addresses of buffers that hold these matrices; scalars and algorithm are read before this returns.
        let code = unsafe {
            (self.api.matmul)(
                self.handle,
                *desc,
                &raw const one,
                args.w.0,
                *w,
                args.x.0,
                *x,
                &raw const zero,
                args.out.0,
                *out,
                args.out.0,
                *out,
                algorithm,
                workspace,
                WORKSPACE,
                stream,
            )
        };
        check("cublasLtMatmul", code)
    }

    fn describe(&self, args: &MatmulArgs) -> Result<Shape, DeviceError> {
        let api = self.api;
        let mut shape = Shape { desc: std::ptr::null_mut(), layouts: [std::ptr::null_mut(); 3], algorithm: [0; 8] };
        let mut preference = std::ptr::null_mut();
        let made = (|| {
            // SAFETY: each call writes one handle, or reads a value of the size that is given.
            unsafe {
                check("cublasLtMatmulDescCreate", (api.desc)(&raw mut shape.desc, COMPUTE_32F, R_32F))?;
                for (attribute, operation) in [(TRANSA, OP_T), (TRANSB, OP_N)] {
                    let value = (&raw const operation).cast::<c_void>();
                    let code = (api.set_desc)(shape.desc, attribute, value, size_of::<i32>());
                    check("cublasLtMatmulDescSetAttribute", code)?;
                }
                for (layout, (format, rows, columns, stride)) in shape.layouts.iter_mut().zip(matrices(args)) {
                    check("cublasLtMatrixLayoutCreate", (api.layout)(layout, format, rows, columns, stride))?;
                }
                check("cublasLtMatmulPreferenceCreate", (api.preference)(&raw mut preference))?;
                let bytes = WORKSPACE as u64;
                let value = (&raw const bytes).cast::<c_void>();
                let code = (api.set_preference)(preference, MAX_WORKSPACE_BYTES, value, size_of::<u64>());
                check("cublasLtMatmulPreferenceSetAttribute", code)?;
                let (mut best, mut count) = (Algorithm::default(), 0);
                let [w, x, out] = shape.layouts;
                let (best_at, count_at) = (&raw mut best, &raw mut count);
                let code = (api.heuristic)(self.handle, shape.desc, w, x, out, out, preference, 1, best_at, count_at);
                check("cublasLtMatmulAlgoGetHeuristic", code)?;
                if count == 0 || best.state != 0 || best.workspace > WORKSPACE {
                    let message = format!("no algorithm for {} x {} x {}", args.n, args.rows, args.k);
                    return Err(DeviceError::Driver { call: "cublasLtMatmulAlgoGetHeuristic", message });
                }
                shape.algorithm = best.algorithm;
            }
            Ok(())
        })();
        // SAFETY: made above, if it was.
        unsafe {
            if !preference.is_null() {
                (api.end_preference)(preference);
            }
            match made {
                Ok(()) => Ok(shape),
                Err(error) => {
                    self.end(&shape);
                    Err(error)
                }
            }
        }
    }

    /// # Safety
    /// Nobody uses the shape again.
    unsafe fn end(&self, shape: &Shape) {
        // SAFETY: handles of the library, destroyed once.
        unsafe {
            if !shape.desc.is_null() {
                (self.api.end_desc)(shape.desc);
            }
            for layout in shape.layouts.into_iter().filter(|layout| !layout.is_null()) {
                (self.api.end_layout)(layout);
            }
        }
    }
}

impl Drop for Matmul {
    fn drop(&mut self) {
        for shape in self.shapes.values() {
            // SAFETY: the last use.
            unsafe { self.end(shape) };
        }
        // SAFETY: ours, and nothing runs any more.
        unsafe { (self.api.destroy)(self.handle) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrices_are_said_as_the_library_wants_them() {
        let args = MatmulArgs { n: 96, k: 64, rows: 128, ..MatmulArgs::default() };
        // Bytes that each matrix spans are those of our buffers.
        let spans = matrices(&args).map(|(format, rows, columns, stride)| {
            assert!(stride >= rows as i64, "columns do not overlap");
            stride as u64 * columns * if format == R_16BF { 2 } else { 4 }
        });
        assert_eq!(spans, [96 * 64 * 2, 128 * 64 * 2, 128 * 96 * 4]);
        let [w, x, out] = matrices(&args);
        // op(w) = w^T is n x k, x is k x rows, out is n x rows.
        assert_eq!((w.2, w.1, x.2), (out.1, x.1, out.2));
        // Written into by the library.
        assert_eq!(size_of::<Algorithm>(), 96);
    }
}
