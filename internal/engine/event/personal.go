package event

import (
	"encoding/json"
	"reflect"
)

// Personal is implemented by payloads that carry personal data. Erasing a
// person withdraws the messages of such types that are about the person.
type Personal interface {
	Payload
	// Subject is the id of the person, or "" if the payload does not name one.
	Subject() string
}

// SubjectOf returns the subject of a message, read as a payload of the type of
// p, or "". Messages that failed are often malformed, so fields of the wrong
// type are skipped.
func SubjectOf(p Personal, data []byte) string {
	value := reflect.New(reflect.TypeOf(p))
	// The standard decoder reads on after a field of the wrong type.
	_ = json.Unmarshal(data, value.Interface())

	return value.Elem().Interface().(Personal).Subject() //nolint:forcetypeassert // it has the type of p
}
