// Package operate is what an operator can do, once: the command line and the
// HTTP API are thin over it.
package operate
