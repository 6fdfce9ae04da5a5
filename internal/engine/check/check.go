// Package check builds the error messages of configuration checks.
package check

import (
	"errors"
	"fmt"
	"net"
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

// Loopback reports whether host is this machine's address for itself.
func Loopback(host string) bool {
	ip := net.ParseIP(host)

	return host == "localhost" || (ip != nil && ip.IsLoopback())
}

// Encrypted returns an error if a password or token, if there is one, would be
// readable on the network on its way to host.
func Encrypted(key string, encrypted, secret bool, host, expected string) error {
	if encrypted || !secret || Loopback(host) {
		return nil
	}

	return fmt.Errorf("%s: lets a secret cross the network to %s unencrypted, expected %s", key, host, expected)
}

// Warnings lists settings that are valid but do nothing, or not what one may expect.
// Each begins with the key.
type Warnings []string
