//! Raw objects by name; knows no meaning.
