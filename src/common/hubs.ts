/** Where models and data sets have names: Hugging Face's hub and ModelScope's. */
export const HUBS = ["huggingface", "modelscope"] as const;
export type HubName = (typeof HUBS)[number];
