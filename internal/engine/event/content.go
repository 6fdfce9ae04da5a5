package event

import (
	"encoding/json"
	"unicode/utf8"
)

// Content is the payload of a message. In JSON it is {"text": "..."}, or {"base64":
// "..."} if it is not UTF-8, so that people can read it and nothing is lost.
type Content []byte

// encodedContent is Content in JSON.
type encodedContent struct {
	Text   *string `json:"text,omitempty"`
	Base64 []byte  `json:"base64,omitempty"`
}

// MarshalJSON implements json.Marshaler.
func (c Content) MarshalJSON() ([]byte, error) {
	if c == nil {
		return []byte("null"), nil
	}

	if !utf8.Valid(c) {
		return json.Marshal(encodedContent{Base64: c})
	}

	text := string(c)

	return json.Marshal(encodedContent{Text: &text})
}

// UnmarshalJSON implements json.Unmarshaler.
func (c *Content) UnmarshalJSON(data []byte) error {
	var encoded encodedContent
	if err := json.Unmarshal(data, &encoded); err != nil {
		return err
	}

	*c = encoded.Base64
	if encoded.Text != nil {
		*c = Content(*encoded.Text)
	}

	return nil
}
