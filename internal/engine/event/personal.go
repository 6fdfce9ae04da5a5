package event

import (
	"encoding/json"
	"reflect"
)

// Personal is implemented by payloads with personal data. Erasing a person withdraws
// that person's messages of these types.
type Personal interface {
	Payload
	// Subject returns the ID of the person, or "" if the payload does not name one.
	Subject() string
}

// SubjectOf returns the subject of a message read as the payload type of p, or "".
// Failed messages are often malformed, so it skips fields of the wrong type.
func SubjectOf(p Personal, data []byte) string {
	value := reflect.New(reflect.TypeOf(p))
	// The standard decoder continues after a field of the wrong type.
	_ = json.Unmarshal(data, value.Interface())

	return value.Elem().Interface().(Personal).Subject() //nolint:forcetypeassert // value has the type of p
}
