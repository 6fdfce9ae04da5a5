package driver

import "fmt"

// Scope is how much of what a service sends a broker refuses.
type Scope string

// Scopes.
const (
	// OneMessage is refused, such as one that is too large. Others of its topic may be
	// accepted.
	OneMessage Scope = "message"
	// OnePartition is refused, such as one without a leader: the message, and others of
	// its topic whose keys are there. It cannot be seen which those are.
	OnePartition Scope = "partition"
	// OneTopic is refused: it is missing, or the account may not use it.
	OneTopic Scope = "topic"
	// Account is refused: its credentials are wrong. Nothing can be sent.
	Account Scope = "account"
)

// RefusedError reports that the broker answers and refuses, until somebody changes the
// message, the topic or the settings. Any other error of publishing and connecting means
// that the connection or the broker is not available.
type RefusedError struct {
	Scope Scope
	// Topic is the topic that is refused, or of the message that is refused.
	Topic string
	// Remedy is what an operator can do.
	Remedy string
	// Err is the answer of the broker.
	Err error
}

// Error implements error.
func (e *RefusedError) Error() string {
	if e.Scope == Account {
		return fmt.Sprintf("the broker refuses the account: %v", e.Err)
	}

	return fmt.Sprintf("the broker refuses a %s (%s): %v", e.Scope, e.Topic, e.Err)
}

// Unwrap implements errors.Unwrap.
func (e *RefusedError) Unwrap() error { return e.Err }
