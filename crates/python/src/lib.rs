//! The Python face: converts, releases the GIL, translates errors. Everything else is Rust below or Python above.
mod array;

/// The compiled half of omnidecode. Use the package `omnidecode`, not this module.
#[pyo3::pymodule]
mod _core {
    #[pymodule_export]
    use crate::array::Array;
}
