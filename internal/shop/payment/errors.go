package payment

import (
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// UnknownError says that nobody knows whether the provider did what it was
// asked for: no answer came, or one that says nothing. The same request may be
// made again, which finds out; nothing may be compensated before.
type UnknownError struct{ Err error }

func (e *UnknownError) Error() string {
	return "the outcome at the payment provider is not known: " + e.Err.Error()
}

func (e *UnknownError) Unwrap() error { return e.Err }

// unknown marks err as an UnknownError, to be asked about again.
func unknown(err error) error { return unavailable(&UnknownError{Err: err}) }

// Dependency is the name of the provider among the dependencies of the service.
const Dependency = "payment gateway"

// unavailable says what becomes of a request while the provider is out of reach
// or refuses us as a whole: it is nobody's fault, and what needs the provider
// waits. It is the only place that does.
func unavailable(err error) error { return event.Unavailable(Dependency, err) }

// unrecorded says what becomes of a request whose record in Postgres cannot be
// read or written: money has not moved by it, or is found by asking again.
func unrecorded(err error) error {
	if postgres.IsUnavailable(err) {
		return event.Unavailable(postgres.Dependency, err)
	}

	return err
}
