// Original file: proto/pipelora/v1/control.proto


export interface Done {
}

export interface Done__Output {
}
