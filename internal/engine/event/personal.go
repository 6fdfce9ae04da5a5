package event

import (
	"encoding/json"
	"reflect"
)

// Personal is implemented by payloads with personal data. Erasing a person withdraws
// that person's messages of these types.
type Personal interface {
	Payload
	// Subject returns the person's ID, or "" if the payload does not name one.
	Subject() string
	// Marks returns the strings in the payload by which the person can be recognised
	// elsewhere, such as a name or an e-mail address.
	Marks() []string
}

// FreeText is implemented by payloads with text that people write for people, such as
// the reason for a cancellation. It may name anybody, so viewers do not see the content of
// these messages. They have no subject, and erasing a person does not withdraw them.
type FreeText interface {
	Payload
	// HasFreeText marks the type.
	HasFreeText()
}

// ReadPersonal reads a message as the payload type of p. Failed messages are often
// malformed, so it skips fields of the wrong type.
func ReadPersonal(p Personal, data []byte) Personal {
	value := reflect.New(reflect.TypeOf(p))
	// The standard decoder continues after a field of the wrong type.
	_ = json.Unmarshal(TrimMark(data), value.Interface())

	return value.Elem().Interface().(Personal) //nolint:forcetypeassert // value has the type of p
}
