//! A float32 matrix on the host that speaks DLPack, so that numpy, torch or JAX can take it without this package depending
//! on any of them.
//!
//! The structures are those of the DLPack specification, version 0 (the capsule named `dltensor`), which every
//! consumer still accepts.
use pyo3::exceptions::{PyBufferError, PyIndexError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use std::ffi::{CStr, c_void};
use std::sync::Arc;

/// `kDLCPU`.
const CPU: i32 = 1;
/// `kDLFloat`.
const FLOAT: u8 = 2;
const NEW: &CStr = c"dltensor";

#[repr(C)]
struct Device {
    kind: i32,
    id: i32,
}
#[repr(C)]
struct DataType {
    code: u8,
    bits: u8,
    lanes: u16,
}
#[repr(C)]
struct Tensor {
    data: *mut c_void,
    device: Device,
    rank: i32,
    dtype: DataType,
    shape: *mut i64,
    strides: *mut i64,
    offset: u64,
}
#[repr(C)]
struct Managed {
    tensor: Tensor,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Managed)>,
}

/// What a consumer borrows from: lives until its deleter is called.
struct Lease {
    _data: Arc<[f32]>,
    shape: [i64; 2],
    strides: [i64; 2],
}

/// A matrix of float32, shape (rows, columns), row-major, on the host. Speaks DLPack.
#[pyclass(frozen, module = "omnidecode._core")]
pub struct Array {
    data: Arc<[f32]>,
    rows: usize,
    columns: usize,
}

impl Array {
    pub fn new(data: Vec<f32>, columns: usize) -> Self {
        let rows = data.len() / columns.max(1);
        Array { data: data.into(), rows, columns }
    }
}

#[pymethods]
impl Array {
    /// (rows, columns).
    #[getter]
    fn shape(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }
    /// Always "float32".
    #[getter]
    fn dtype(&self) -> &'static str {
        "float32"
    }
    /// One row as a list of floats; negative numbers count from the end.
    fn row(&self, index: isize) -> PyResult<Vec<f32>> {
        let at = if index < 0 { index + self.rows as isize } else { index };
        if at < 0 || at as usize >= self.rows {
            return Err(PyIndexError::new_err(format!(
                "expected a row from 0 to {}, found {index}",
                self.rows as isize - 1
            )));
        }
        let start = at as usize * self.columns;
        Ok(self.data[start..start + self.columns].to_vec())
    }
    /// All rows as lists of floats.
    fn tolist(&self) -> Vec<Vec<f32>> {
        self.data.chunks(self.columns.max(1)).map(<[f32]>::to_vec).collect()
    }
    fn __len__(&self) -> usize {
        self.rows
    }
    fn __repr__(&self) -> String {
        format!("Array(shape=({}, {}), dtype=float32)", self.rows, self.columns)
    }
    /// The device as DLPack counts: (1, 0) is the host.
    fn __dlpack_device__(&self) -> (i32, i32) {
        (CPU, 0)
    }
    /// A capsule with a copy that the consumer owns; with `copy=False` it shares this memory, and must not be written to.
    #[pyo3(signature = (*, stream: "object" = None, max_version: "object" = None, dl_device: "tuple[int, int] | None" = None, copy: "bool | None" = None) -> "object")]
    fn __dlpack__<'py>(
        &self,
        py: Python<'py>,
        stream: Option<Bound<'py, PyAny>>,
        max_version: Option<Bound<'py, PyAny>>,
        dl_device: Option<(i32, i32)>,
        copy: Option<bool>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let _ = (stream, max_version); // nothing is in flight on the host, and version 0 is within any maximum
        if dl_device.is_some_and(|device| device != (CPU, 0)) {
            return Err(PyBufferError::new_err(
                "expected dl_device (1, 0), the host; found another; copy it there yourself",
            ));
        }
        // Consumers may write to what they were given (the protocol had no word for read-only), so sharing is on demand.
        let data = if copy == Some(false) { self.data.clone() } else { Arc::from(&self.data[..]) };
        let pointer = data.as_ptr() as *mut c_void;
        let lease = Box::new(Lease {
            _data: data,
            shape: [self.rows as i64, self.columns as i64],
            strides: [self.columns as i64, 1],
        });
        let lease = Box::into_raw(lease);
        // SAFETY: `lease` was just made from a box; its arrays stay where they are until `release` frees it.
        let (shape, strides) = unsafe { ((&raw mut (*lease).shape).cast(), (&raw mut (*lease).strides).cast()) };
        let managed = Box::into_raw(Box::new(Managed {
            tensor: Tensor {
                data: pointer,
                device: Device { kind: CPU, id: 0 },
                rank: 2,
                dtype: DataType { code: FLOAT, bits: 32, lanes: 1 },
                shape,
                strides,
                offset: 0,
            },
            context: lease.cast(),
            deleter: Some(release),
        }));
        // SAFETY: the name is static, the pointer is not null, and `drop_capsule` frees it unless a consumer took it.
        let capsule = unsafe { ffi::PyCapsule_New(managed.cast(), NEW.as_ptr(), Some(drop_capsule)) };
        if capsule.is_null() {
            // SAFETY: no capsule owns it.
            unsafe { release(managed) };
            return Err(PyErr::fetch(py));
        }
        // SAFETY: a new, owned reference.
        Ok(unsafe { Bound::from_owned_ptr(py, capsule) })
    }
    /// The numpy array of these numbers; needs numpy.
    #[pyo3(signature = (dtype: "object" = None, copy: "bool | None" = None) -> "object")]
    fn __array__<'py>(
        slf: &Bound<'py, Self>,
        dtype: Option<Bound<'py, PyAny>>,
        copy: Option<bool>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let array = py.import("numpy")?.call_method1("from_dlpack", (slf,))?;
        let kwargs = PyDict::new(py);
        kwargs.set_item("copy", copy.unwrap_or(false))?;
        match dtype {
            Some(dtype) => array.call_method("astype", (dtype,), Some(&kwargs)),
            None if copy == Some(true) => array.call_method1("copy", PyTuple::empty(py)),
            None => Ok(array),
        }
    }
}

/// Frees what a consumer was lent.
///
/// # Safety
/// `managed` came from [`Array::__dlpack__`] and is released once.
unsafe extern "C" fn release(managed: *mut Managed) {
    // SAFETY: both boxes were leaked in `__dlpack__`, and DLPack calls the deleter once.
    unsafe {
        let managed = Box::from_raw(managed);
        drop(Box::from_raw(managed.context.cast::<Lease>()));
    }
}

/// The capsule's destructor: a consumer renames what it takes, so only an untouched one is freed here.
///
/// # Safety
/// Called by Python with a live capsule.
unsafe extern "C" fn drop_capsule(capsule: *mut ffi::PyObject) {
    // SAFETY: `capsule` is live; the pointer is ours when the name still is.
    unsafe {
        if ffi::PyCapsule_IsValid(capsule, NEW.as_ptr()) == 1 {
            let managed = ffi::PyCapsule_GetPointer(capsule, NEW.as_ptr()).cast::<Managed>();
            if let Some(deleter) = (*managed).deleter {
                deleter(managed);
            }
        }
    }
}
