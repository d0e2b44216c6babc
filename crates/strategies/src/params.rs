//! Typed parameters: one line a parameter gives its field, default, range, documentation, parser and JSON schema.
use serde_json::{Map, Value};

/// Parameters as they arrive from Python, HTTP or the shell.
pub type Options = Map<String, Value>;

/// Why parameters were refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ParamError {
    /// No parameter of this name.
    #[error("{owner} has no parameter `{name}`; it has {known}")]
    Unknown {
        /// Strategy or companion.
        owner: String,
        /// What was given.
        name: String,
        /// What there is.
        known: String,
    },
    /// Wrong type or out of range.
    #[error("{owner}: parameter `{name}` expects {expected}, found {found}")]
    Bad {
        /// Strategy or companion.
        owner: String,
        /// Parameter.
        name: String,
        /// Type and range.
        expected: String,
        /// The value as JSON.
        found: String,
    },
}

/// What is known of one parameter: everything that Python classes, CLI flags, the server and the docs are grown from.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct ParamInfo {
    /// Name, snake case.
    pub name: &'static str,
    /// `bool`, `int`, `float`, `str`, `list[int]`, `list[float]`, or one of these followed by `?` when it may be null.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Default value.
    pub default: Value,
    /// Allowed values: `[min, max]` for numbers (and for the members of lists), the choices for strings, else null.
    pub range: Value,
    /// One sentence.
    pub doc: &'static str,
}

/// A type that a parameter can have.
pub trait Param: Sized {
    /// Name of the type, as in [`ParamInfo::kind`].
    const KIND: &'static str;
    /// From JSON; `None` when it is something else.
    fn read(value: &Value) -> Option<Self>;
    /// To JSON.
    fn show(&self) -> Value;
    /// The numbers in it, for range checks.
    fn numbers(&self) -> Vec<f64> {
        Vec::new()
    }
    /// The text in it, for checks against choices.
    fn text(&self) -> Option<&str> {
        None
    }
}

impl Param for bool {
    const KIND: &'static str = "bool";
    fn read(value: &Value) -> Option<Self> {
        value.as_bool()
    }
    fn show(&self) -> Value {
        Value::from(*self)
    }
}
impl Param for usize {
    const KIND: &'static str = "int";
    fn read(value: &Value) -> Option<Self> {
        value.as_u64().and_then(|v| usize::try_from(v).ok())
    }
    fn show(&self) -> Value {
        Value::from(*self)
    }
    fn numbers(&self) -> Vec<f64> {
        vec![*self as f64]
    }
}
impl Param for f64 {
    const KIND: &'static str = "float";
    fn read(value: &Value) -> Option<Self> {
        value.as_f64().filter(|v| v.is_finite())
    }
    fn show(&self) -> Value {
        Value::from(*self)
    }
    fn numbers(&self) -> Vec<f64> {
        vec![*self]
    }
}
impl Param for String {
    const KIND: &'static str = "str";
    fn read(value: &Value) -> Option<Self> {
        value.as_str().map(str::to_owned)
    }
    fn show(&self) -> Value {
        Value::from(self.as_str())
    }
    fn text(&self) -> Option<&str> {
        Some(self)
    }
}
macro_rules! list {
    ($item:ty, $kind:literal) => {
        impl Param for Vec<$item> {
            const KIND: &'static str = $kind;
            fn read(value: &Value) -> Option<Self> {
                value.as_array()?.iter().map(<$item>::read).collect()
            }
            fn show(&self) -> Value {
                self.iter().map(Param::show).collect()
            }
            fn numbers(&self) -> Vec<f64> {
                self.iter().flat_map(Param::numbers).collect()
            }
        }
    };
}
list!(usize, "list[int]");
list!(f64, "list[float]");
list!(String, "list[str]");
macro_rules! optional {
    ($item:ty, $kind:literal) => {
        impl Param for Option<$item> {
            const KIND: &'static str = $kind;
            fn read(value: &Value) -> Option<Self> {
                if value.is_null() { Some(None) } else { <$item>::read(value).map(Some) }
            }
            fn show(&self) -> Value {
                self.as_ref().map_or(Value::Null, Param::show)
            }
            fn numbers(&self) -> Vec<f64> {
                self.as_ref().map_or_else(Vec::new, Param::numbers)
            }
            fn text(&self) -> Option<&str> {
                self.as_ref().and_then(Param::text)
            }
        }
    };
}
optional!(usize, "int?");
optional!(f64, "float?");
optional!(String, "str?");

/// Range or choices of a parameter, checked after its type.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bounds {
    /// Anything of the type.
    Any,
    /// Numbers within, both ends included.
    Within(f64, f64),
    /// One of these texts.
    OneOf(&'static [&'static str]),
}
impl Bounds {
    /// As JSON, for [`ParamInfo::range`].
    pub fn show(self) -> Value {
        match self {
            Bounds::Any => Value::Null,
            Bounds::Within(min, max) => [min, max].into_iter().map(bound).collect(),
            Bounds::OneOf(names) => names.iter().copied().collect(),
        }
    }
    fn hold<P: Param>(self, value: &P) -> bool {
        match self {
            Bounds::Any => true,
            Bounds::Within(min, max) => value.numbers().iter().all(|v| (min..=max).contains(v)),
            Bounds::OneOf(names) => value.text().is_none_or(|t| names.contains(&t)),
        }
    }
    fn tell(self) -> String {
        match self {
            Bounds::Any => String::new(),
            Bounds::Within(min, max) => format!(" from {min} to {max}"),
            Bounds::OneOf(names) => format!(" out of {names:?}"),
        }
    }
}
/// Whole bounds are shown as whole numbers, open ends as null.
fn bound(value: f64) -> Value {
    if !value.is_finite() {
        Value::Null
    } else if value.fract() == 0.0 && value.abs() < 1e15 {
        Value::from(value as i64)
    } else {
        Value::from(value)
    }
}

/// One parameter out of JSON, checked. Used by [`params!`](crate::params!).
pub fn read<P: Param>(owner: &str, name: &str, value: &Value, bounds: Bounds) -> Result<P, ParamError> {
    P::read(value).filter(|v| bounds.hold(v)).ok_or_else(|| ParamError::Bad {
        owner: owner.into(),
        name: name.into(),
        expected: format!("{}{}", P::KIND, bounds.tell()),
        found: value.to_string(),
    })
}

/// The parameters of a strategy or companion.
///
/// ```ignore
/// params! {
///     /// Successors remembered per token.
///     k: usize = 8, within 1.0, 32.0;
///     /// How ties are broken.
///     order: String = "bfs".into(), one_of "bfs", "dfs";
/// }
/// ```
#[macro_export]
macro_rules! params {
    ($($(#[doc = $doc:literal])+ $name:ident : $ty:ty = $default:expr $(, within $min:expr, $max:expr)? $(, one_of $($choice:literal),+)?;)*) => {
        /// Parameters, each documented at its field.
        #[derive(Clone, Debug, PartialEq)]
        pub struct Params { $($(#[doc = $doc])+ pub $name: $ty),* }
        impl Default for Params {
            fn default() -> Self { Self { $($name: $default),* } }
        }
        impl $crate::registry::ParamSet for Params {
            fn info() -> Vec<$crate::params::ParamInfo> {
                #[allow(unused_variables)]
                let default = Self::default();
                vec![$($crate::params::ParamInfo {
                    name: stringify!($name),
                    kind: <$ty as $crate::params::Param>::KIND,
                    default: $crate::params::Param::show(&default.$name),
                    range: $crate::params!(@bounds $(within $min, $max)? $(one_of $($choice),+)?).show(),
                    doc: concat!($($doc),+).trim_ascii(),
                }),*]
            }
            #[allow(unused_mut, unused_variables)]
            fn parse(owner: &str, options: &$crate::params::Options) -> Result<Self, $crate::params::ParamError> {
                let mut params = Self::default();
                for (key, value) in options {
                    match key.as_str() {
                        $(stringify!($name) => params.$name = $crate::params::read(owner, key, value,
                            $crate::params!(@bounds $(within $min, $max)? $(one_of $($choice),+)?))?,)*
                        _ => {
                            let known: Vec<&str> = vec![$(stringify!($name)),*];
                            return Err($crate::params::ParamError::Unknown { owner: owner.into(), name: key.clone(),
                                known: if known.is_empty() { "none".into() } else { known.join(", ") } });
                        }
                    }
                }
                Ok(params)
            }
        }
    };
    (@bounds) => { $crate::params::Bounds::Any };
    (@bounds within $min:expr, $max:expr) => { $crate::params::Bounds::Within($min, $max) };
    (@bounds one_of $($choice:literal),+) => { $crate::params::Bounds::OneOf(&[$($choice),+]) };
}

#[cfg(test)]
mod tests {
    use super::Options;
    use crate::registry::ParamSet;
    use serde_json::json;

    crate::params! {
        /// Successors remembered per token.
        k: usize = 8, within 1.0, 32.0;
        /// Share of mass.
        mass: f64 = 0.5, within 0.0, f64::INFINITY;
        /// Which order.
        order: String = "bfs".into(), one_of "bfs", "dfs";
        /// May be off.
        depth: Option<usize> = None, within 1.0, 9.0;
    }

    fn options(value: serde_json::Value) -> Options {
        value.as_object().expect("an object").clone()
    }

    #[test]
    fn defaults_ranges_and_errors() {
        assert_eq!(Params::parse("s", &Options::new()), Ok(Params::default()));
        let given = options(json!({"k": 4, "mass": 2, "order": "dfs", "depth": 3}));
        let params = Params::parse("s", &given).expect("valid");
        assert_eq!((params.k, params.mass, params.order.as_str(), params.depth), (4, 2.0, "dfs", Some(3)));
        let refused = [
            json!({"k": 0}),
            json!({"k": 1.5}),
            json!({"k": "4"}),
            json!({"mass": -1}),
            json!({"order": "x"}),
            json!({"depth": 10}),
        ];
        for bad in refused {
            let error = Params::parse("s", &options(bad.clone())).expect_err("out of range");
            assert!(error.to_string().contains("expects"), "{bad}: {error}");
        }
        let error = Params::parse("s", &options(json!({"kk": 4}))).expect_err("unknown");
        assert_eq!(error.to_string(), "s has no parameter `kk`; it has k, mass, order, depth");
        let info = Params::info();
        assert_eq!(info[0].range, json!([1, 32]));
        assert_eq!(info[1].range, json!([0, null]));
        assert_eq!((info[3].kind, &info[3].default), ("int?", &json!(null)));
        assert_eq!(info[0].doc, "Successors remembered per token.");
    }
}
