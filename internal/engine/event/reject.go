package event

import (
	"errors"
	"time"
)

// Reason classifies why a message was rejected; it labels metrics and poison
// entries.
type Reason string

// Reasons for which a message ends in the poison queue.
const (
	ReasonTooLarge  Reason = "too_large"     // larger than MaxPayload
	ReasonMalformed Reason = "malformed"     // not JSON, or of the wrong shape
	ReasonInvalid   Reason = "invalid"       // a field is missing or out of range
	ReasonRefused   Reason = "refused"       // a rule of the domain forbids it
	ReasonConflict  Reason = "conflict"      // its id was used with another body
	ReasonFailed    Reason = "handler_error" // the handler kept failing
	ReasonPanicked  Reason = "panic"         // the handler panicked
)

// RejectError marks an error as the message's own fault: trying again cannot
// help, so the message goes to the poison queue at once.
type RejectError struct {
	Reason Reason
	Err    error
}

func (e *RejectError) Error() string { return e.Err.Error() }

func (e *RejectError) Unwrap() error { return e.Err }

// Reject marks err as a refusal by a rule of the domain.
func Reject(err error) error { return RejectAs(ReasonRefused, err) }

// RejectAs marks err as the message's own fault, for the given reason.
func RejectAs(reason Reason, err error) error { return &RejectError{Reason: reason, Err: err} }

// LaterError says that a message may well succeed later: a provider was busy.
// It is parked at once and tried again; later messages of its key wait behind it.
type LaterError struct {
	// After is how long to wait at least; 0 leaves it to the consumer.
	After time.Duration
	Err   error
}

func (e *LaterError) Error() string { return e.Err.Error() }

func (e *LaterError) Unwrap() error { return e.Err }

// Later marks err as one that waiting may cure.
func Later(after time.Duration, err error) error { return &LaterError{After: after, Err: err} }

// UnavailableError says that an effect could not even be tried, or that its
// outcome is unknown, because something outside is out of reach. It is nobody's
// fault: what needs the dependency is paused until it answers again, and the
// message is tried for ever.
type UnavailableError struct {
	// Dependency names what is out of reach, for people and metrics.
	Dependency string
	Err        error
}

func (e *UnavailableError) Error() string { return e.Dependency + " is unavailable: " + e.Err.Error() }

func (e *UnavailableError) Unwrap() error { return e.Err }

// Unavailable marks err as trouble of a dependency.
func Unavailable(dependency string, err error) error {
	return &UnavailableError{Dependency: dependency, Err: err}
}

// RejectSome is returned by a batch handler when some events of the batch are
// at fault, by their index in the batch. The transaction is rolled back, those
// events are rejected and the others run again together.
type RejectSome map[int]error

func (r RejectSome) Error() string {
	errs := make([]error, 0, len(r))
	for _, err := range r {
		errs = append(errs, err)
	}

	return errors.Join(errs...).Error()
}

// Err returns r as an error, or nil when no event is at fault.
func (r RejectSome) Err() error {
	if len(r) == 0 {
		return nil
	}

	return r
}
