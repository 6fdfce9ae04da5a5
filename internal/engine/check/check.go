// Package check builds the error messages for configuration checks.
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

// Loopback reports whether host is a loopback address or localhost.
func Loopback(host string) bool {
	ip := net.ParseIP(host)

	return host == "localhost" || (ip != nil && ip.IsLoopback())
}

// Dialable returns an address that connects to a listener at addr on this machine: a
// loopback address if the listener is on all addresses.
func Dialable(addr string) string {
	host, port, err := net.SplitHostPort(addr)

	switch ip := net.ParseIP(host); {
	case err != nil:
		return addr
	case host == "" || ip.Equal(net.IPv4zero):
		host = "127.0.0.1"
	case ip.Equal(net.IPv6unspecified):
		host = "::1"
	}

	return net.JoinHostPort(host, port)
}

// Encrypted returns an error if there is a secret, such as a password or token, and it
// would cross the network to host unencrypted.
func Encrypted(key string, encrypted, secret bool, host, expected string) error {
	if encrypted || !secret || Loopback(host) {
		return nil
	}

	return fmt.Errorf("%s: sends a secret to %s unencrypted, expected %s", key, host, expected)
}

// Warnings lists settings that are valid but have no effect, or an unexpected one. Each
// begins with the key.
type Warnings []string
