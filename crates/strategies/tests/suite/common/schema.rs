//! A small JSON-schema validator, independent of the grammar's: what it does not know, it does not judge.
use serde_json::Value;

/// Why a value is not one of the schema's.
pub fn violation(schema: &Value, value: &Value) -> Option<String> {
    Checker { root: schema }.check(schema, value, 0)
}

struct Checker<'a> {
    root: &'a Value,
}
impl Checker<'_> {
    fn check(&self, schema: &Value, value: &Value, depth: usize) -> Option<String> {
        if depth > 64 {
            return None;
        }
        if let Some(allowed) = schema.as_bool() {
            return (!allowed).then(|| format!("{value} where nothing is allowed"));
        }
        let no = |what: &str| Some(format!("{value} breaks `{what}` of {schema}"));
        if let Some(reference) = schema["$ref"].as_str() {
            let target = reference.strip_prefix('#').and_then(|p| self.root.pointer(p))?;
            return self.check(target, value, depth + 1);
        }
        if let Some(types) = schema.get("type") {
            let of = |name: &Value| match name.as_str().unwrap_or("") {
                "object" => value.is_object(),
                "array" => value.is_array(),
                "string" => value.is_string(),
                "boolean" => value.is_boolean(),
                "null" => value.is_null(),
                "number" => value.is_number(),
                "integer" => value.as_f64().is_some_and(|x| x.fract() == 0.0),
                _ => true,
            };
            if !types.as_array().map_or_else(|| of(types), |all| all.iter().any(of)) {
                return no("type");
            }
        }
        let equal = |a: &Value| a == value || a.as_f64().is_some_and(|x| Some(x) == value.as_f64());
        if schema["enum"].as_array().is_some_and(|all| !all.iter().any(equal)) {
            return no("enum");
        }
        if schema.get("const").is_some_and(|c| !equal(c)) {
            return no("const");
        }
        for (name, more) in [("minimum", true), ("maximum", false)] {
            if let (Some(bound), Some(x)) = (schema[name].as_f64(), value.as_f64())
                && (if more { x < bound } else { x > bound })
            {
                return no(name);
            }
        }
        let sizes = [
            ("minLength", "maxLength", value.as_str().map(|s| s.chars().count())),
            ("minItems", "maxItems", value.as_array().map(Vec::len)),
        ];
        for (least, most, size) in sizes {
            let Some(size) = size.map(|n| n as u64) else { continue };
            if schema[least].as_u64().is_some_and(|n| size < n) || schema[most].as_u64().is_some_and(|n| size > n) {
                return no(least);
            }
        }
        if let Some(all) = schema["allOf"].as_array()
            && let Some(wrong) = all.iter().find_map(|s| self.check(s, value, depth + 1))
        {
            return Some(wrong);
        }
        for name in ["anyOf", "oneOf"] {
            if let Some(any) = schema[name].as_array()
                && any.iter().all(|s| self.check(s, value, depth + 1).is_some())
            {
                return no(name);
            }
        }
        if let Some(items) = value.as_array()
            && schema["items"].is_object()
            && let Some(wrong) = items.iter().find_map(|v| self.check(&schema["items"], v, depth + 1))
        {
            return Some(wrong);
        }
        if let Some(fields) = value.as_object() {
            let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
            if let Some(missing) = { required }.find(|name| !fields.contains_key(*name)) {
                return no(&format!("required {missing}"));
            }
            for (name, field) in fields {
                match (schema["properties"].get(name), &schema["additionalProperties"]) {
                    (Some(one), _) => {
                        if let Some(wrong) = self.check(one, field, depth + 1) {
                            return Some(wrong);
                        }
                    }
                    (None, Value::Bool(false)) if schema.get("patternProperties").is_none() => {
                        return no(&format!("additionalProperties: {name}"));
                    }
                    _ => {}
                }
            }
        }
        None
    }
}
