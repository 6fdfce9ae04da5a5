package event

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
)

// binaryValue is the JSON form of a non-text header value.
type binaryValue struct {
	Base64 string `json:"base64"`
}

// MarshalJSON encodes the headers as an object of strings. Values that Postgres
// cannot store as a JSON string (invalid UTF-8, or containing NUL) become {"base64":
// "..."}; such names are quoted.
func (h Headers) MarshalJSON() ([]byte, error) {
	object := make(map[string]any, len(h))

	for name, value := range h {
		if Storable(name) != nil {
			name = fmt.Sprintf("%+q", name)
		}

		if Storable(value) == nil {
			object[name] = value
		} else {
			object[name] = binaryValue{Base64: base64.StdEncoding.EncodeToString([]byte(value))}
		}
	}

	return json.Marshal(object)
}

// UnmarshalJSON parses the output of MarshalJSON.
func (h *Headers) UnmarshalJSON(data []byte) error {
	var object map[string]json.RawMessage
	if err := json.Unmarshal(data, &object); err != nil {
		return err
	}

	*h = make(Headers, len(object))

	for name, raw := range object {
		var text string
		if json.Unmarshal(raw, &text) == nil {
			(*h)[name] = text

			continue
		}

		var binary binaryValue
		if err := json.Unmarshal(raw, &binary); err != nil {
			return fmt.Errorf("header %s: %w", name, err)
		}

		value, err := base64.StdEncoding.DecodeString(binary.Base64)
		if err != nil {
			return fmt.Errorf("header %s: %w", name, err)
		}

		(*h)[name] = string(value)
	}

	return nil
}
