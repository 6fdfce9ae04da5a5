// Package check builds the error messages of configuration checks.
package check

import (
	"errors"
	"fmt"
)

// Value returns an error that names the key, its value and the expected value, unless
// ok. Never call it with a secret.
func Value(ok bool, key string, value any, expected string) error {
	switch text, isText := value.(string); {
	case ok:
		return nil
	case isText:
		return fmt.Errorf("%s: is %q, expected %s", key, text, expected)
	default:
		return fmt.Errorf("%s: is %v, expected %s", key, value, expected)
	}
}

// Positive checks that the value of a key is at least 1.
func Positive[N ~int | ~int16 | ~int32](key string, n N) error {
	return Value(n >= 1, key, n, "at least 1")
}

// That returns an error with the given text unless ok.
func That(ok bool, text string) error {
	if ok {
		return nil
	}

	return errors.New(text)
}
