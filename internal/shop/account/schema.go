package account

import (
	"maps"
	"slices"

	"github.com/danielgtaylor/huma/v2"
)

// embedded is the name under which huma describes the fields that become properties.
const embedded = "Properties"

// TransformSchema implements huma.SchemaTransformer: all other fields become properties.
func (NewUser) TransformSchema(_ huma.Registry, s *huma.Schema) *huma.Schema {
	delete(s.Properties, embedded)
	s.Required = slices.DeleteFunc(s.Required, func(name string) bool { return name == embedded })
	s.MaxProperties = new(len(s.Properties) + maxProperties)

	return s
}

// Schema implements huma.SchemaProvider: the fields of the old and of the current format.
func (LegacyEvent) Schema(huma.Registry) *huma.Schema {
	id := &huma.Schema{Type: huma.TypeString, Format: "id", MinLength: new(1), Description: "The user."}
	action := &huma.Schema{Type: huma.TypeString, MinLength: new(1), Pattern: `^([cC]reate|[uU]pdate)(_user)?(User)?$`, Description: "What to do, such as create or updateUser."}
	name := &huma.Schema{Type: huma.TypeString, Description: "The name."}
	email := &huma.Schema{Type: huma.TypeString, Description: "The e-mail address."}
	fields := map[string]*huma.Schema{"user_id": id, "action": action, "name": name, "email": email}

	s := &huma.Schema{Type: huma.TypeObject, Properties: map[string]*huma.Schema{
		"user":    {Type: huma.TypeObject, Description: "The fields of a new user may also be in here."},
		"updates": {Type: huma.TypeObject, Description: "The fields to change may also be in here."},
	}}

	for _, old := range slices.Sorted(maps.Keys(legacyNames)) {
		current := legacyNames[old]
		s.Properties[old], s.Properties[current] = fields[current], fields[current]
		either := []*huma.Schema{{Required: []string{old}}, {Required: []string{current}}}

		if current == "user_id" || current == "action" {
			s.AllOf = append(s.AllOf, &huma.Schema{OneOf: either})
		} else {
			s.AllOf = append(s.AllOf, &huma.Schema{Not: &huma.Schema{Required: []string{old, current}}})
		}
	}

	return s
}
