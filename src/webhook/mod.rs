//! From a settled task to an answered POST: render, guard, sign, send.
